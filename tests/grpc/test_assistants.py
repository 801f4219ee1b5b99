from conftest import Stubs
def test_x(stubs: Stubs) -> None:
    print(stubs.new_assistant())
    assert 0
