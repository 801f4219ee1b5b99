"""Update masks (AIP-134)."""

from collections.abc import Sequence

from google.protobuf.message import Message

from famulus_server.api.validation.fields import Fields


def paths(fields: Fields, message: Message, mask: Sequence[str], mutable: Sequence[str]) -> list[str]:
    """The fields to change, out of the `mutable` ones: those the mask names, all for `*`, and for an empty mask those
    that are set in the message."""
    if not mask:
        given = {field.name for field, _ in message.ListFields()}
        return [name for name in mutable if name in given]
    if list(mask) == ["*"]:
        return list(mutable)
    if fields.few("update_mask", mask, 100):
        for index, name in enumerate(mask):
            if name == "*":
                fields.wrong(f"update_mask.paths[{index}]", "`*` must stand alone")
            elif name not in mutable:
                known = ", ".join(mutable)
                fields.wrong(f"update_mask.paths[{index}]", f"is not a field that can be changed: {known}")
    return [name for name in mutable if name in mask]
