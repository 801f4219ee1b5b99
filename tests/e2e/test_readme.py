"""The program in the README is one that works."""

import re
import subprocess
import sys
from pathlib import Path

from command import SECONDS, Running, environment, server_environment
from famulus_server.embedded.local_model import MODEL_NAME

README = Path(__file__).parents[2] / "README.md"


def test_python_example_prints_the_answer_to_its_question(tmp_path: Path) -> None:
    [program] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    [question] = re.findall(r'TextPart\(text="(.*)"\)', program)
    assert {"127.0.0.1:7461", MODEL_NAME} <= set(re.findall(r'"(.*?)"', program))
    with Running("serve", env=server_environment(tmp_path)) as server:
        program = program.replace("127.0.0.1:7461", server.address()).replace(MODEL_NAME, "scripted")
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            check=False,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"You said: {question}\n", "")
