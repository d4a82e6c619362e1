"""The parameter tables of the README, made from the parameters. `python tests/readme_tables.py` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from asr_fine_tuner.command_line import describe
from asr_fine_tuner.parameters import JobParameters, PreprocessParameters, TrainParameters

README = Path(__file__).parent.parent / "README.md"
_BLOCK = re.compile(r"<!-- parameters -->\n.*?<!-- /parameters -->", re.DOTALL)


_NOTES = {"Both jobs": "`train` takes dataset, language and task from the artifact where they are not given.\n\n"}


def parameter_tables() -> str:
    # The grace period has another default in each job.
    shared = (set(JobParameters.model_fields) - {"grace_period"}) | {"dataset_name", "language_code"}
    both = [name for name in PreprocessParameters.model_fields if name in shared]
    parts = [
        ("Both jobs", PreprocessParameters, both),
        ("Preprocess", PreprocessParameters, [n for n in PreprocessParameters.model_fields if n not in shared]),
        ("Train", TrainParameters, [n for n in TrainParameters.model_fields if n not in shared]),
    ]
    tables = "\n\n".join(f"### {title}\n\n{_NOTES.get(title, '')}{_table(kind, names)}" for title, kind, names in parts)
    return f"<!-- parameters -->\n{tables}\n<!-- /parameters -->"


def readme_with_tables(readme: str) -> str:
    return _BLOCK.sub(lambda _: parameter_tables(), readme)


def _table(kind: type[JobParameters], names: list[str]) -> str:
    rows = ["| parameter | type | default | what |", "| --- | --- | --- | --- |"]
    for name in names:
        about = describe(kind.model_fields[name])
        kinds = about.type_name.replace("|", " \\| ")
        unit = f" ({about.unit})" if about.unit else ""
        rows.append(f"| `{name}` | {kinds} | {about.default} | {about.meaning}{unit} |")
    return "\n".join(rows)


if __name__ == "__main__":
    README.write_text(readme_with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
