"""The formats that help and documents list are those of the registries."""

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from onellm_async.batch.config import InputFormatName, OutputFormatName
from onellm_async.batch.inputs.formats import FORMATS as INPUTS
from onellm_async.batch.outputs.formats import FORMATS as OUTPUTS
from onellm_async.cli.export import export
from onellm_async.cli.reading import InputFlags
from onellm_async.cli.shard import merge, split

GUIDE = (Path(__file__).parents[2] / "docs/how-to/formats.md").read_text("utf-8")


def listed(function, parameter: str) -> set[str]:
    """The formats in the help of an option."""
    (option,) = get_args(get_type_hints(function, include_extras=True)[parameter])[1:]
    return set(re.search(r": ([a-z, -]+)\.", option.help)[1].split(", "))


@pytest.mark.parametrize(("function", "parameter"), [(InputFlags, "format"), (split, "shape")])
def test_help_lists_the_input_formats(function, parameter):
    assert listed(function, parameter) == {each.name for each in INPUTS}


@pytest.mark.parametrize(("function", "parameter"), [(export, "shape"), (merge, "shape")])
def test_help_lists_the_output_formats(function, parameter):
    assert listed(function, parameter) == {each.name for each in OUTPUTS}


def test_type_checkers_know_all_formats():
    assert set(get_args(InputFormatName)) == {each.name for each in INPUTS}
    assert set(get_args(OutputFormatName)) == {each.name for each in OUTPUTS}


def test_the_guide_has_a_row_for_each_input_format_with_its_endings():
    rows = [line.split("|")[1:3] for line in GUIDE.splitlines() if line.startswith("| `")]
    endings = {
        name: set(re.findall(r"`(\.[a-z]+)`", cell)) for names, cell in rows for name in re.findall("`(.+?)`", names)
    }
    assert endings.keys() == {each.name for each in INPUTS}
    for each in INPUTS:
        if each.name not in {"openai-batch", "json"}:  # their names tell no format of their own
            assert set(each.suffixes) - {".json"} <= endings[each.name], each.name


def test_the_guide_names_the_endings_of_outputs():
    sentence = re.search(r"The format of the output follows from its name: (.*?), one record", GUIDE, re.DOTALL)[1]
    assert set(re.findall(r"`(\.[a-z]+)`", sentence)) == {each.suffixes[0] for each in OUTPUTS if each.suffixes}
