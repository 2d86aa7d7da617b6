import json
import os
import platform
import re
import socket
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest

import hoyer_export as hx
from hoyer_export import environment
from hoyer_export.environment import environment_record

ROOT = Path(__file__).parents[1]


def test_the_record_holds_the_versions_of_what_is_installed_and_nothing_of_what_is_not(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert environment_record().versions.items() >= {"torch": version("torch")}.items()
    assert "no-such-package" not in environment_record().versions


def test_a_source_tree_states_the_version_in_its_pyproject_and_that_it_is_one(monkeypatch):
    # The tests run on an installed copy as well.
    monkeypatch.setattr(environment, "__file__", str(ROOT / "hoyer_export" / "environment.py"))
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert environment_record().versions["hoyer-export"] == f"{stated} (source tree)"
    assert hx.__version__ == stated


@pytest.mark.parametrize(
    ("pyproject", "stated"),
    [
        (None, "7.5"),
        ('[project]\nname = "hoyer-export"\nversion = "9.1"\n', "9.1 (source tree)"),
        ('[project]\nname = "another"\nversion = "9.1"\n', "7.5"),
        ('[project]\nname = "hoyer-export"\ndynamic = ["version"]\n', "7.5"),
        ("project = 3\n", "7.5"),
        ("no TOML", "7.5"),
    ],
)
def test_an_installed_copy_states_the_version_that_was_installed(pyproject, stated, tmp_path, monkeypatch):
    if pyproject is not None:
        (tmp_path / "pyproject.toml").write_text(pyproject)
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "hoyer_export" / "environment.py"))
    monkeypatch.setattr(environment, "version", lambda package: "7.5")
    assert environment_record().versions["hoyer-export"] == stated
    assert hx.__version__ == stated.removesuffix(" (source tree)")


def test_files_copied_out_of_their_tree_claim_no_version(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "hoyer_export" / "environment.py"))
    monkeypatch.setattr(environment, "OWN", "no-such-package")
    assert hx.__version__ == "unknown"


def test_threads_are_those_the_process_may_use():
    record = environment_record()
    assert 1 <= record.threads <= record.cores == os.cpu_count()
    assert record.python == platform.python_version()


def test_the_first_processor_of_a_linux_description_is_read():
    cpuinfo = "processor\t: 0\nmodel name\t: Example CPU @ 2.0GHz\nflags\t\t: fpu avx2 avx512f amx_tile avx\n"
    assert environment._cpu_name(cpuinfo) == "Example CPU @ 2.0GHz"
    assert environment._speed_flags(cpuinfo) == ("avx", "avx2", "avx512f", "amx_tile")
    assert environment._speed_flags("") == ()


def test_the_record_is_json_without_host_name_or_path():
    text = json.dumps(asdict(environment_record()))
    assert socket.gethostname() not in text
    assert os.getcwd() not in text
    assert sys.prefix not in text


def test_measuring_modules_start_without_torch_and_scipy():
    modules = "environment", "deploy.macs", "deploy.benchmark", "deploy.explain"
    imports = "; ".join(f"import hoyer_export.{name}" for name in modules)
    code = f"import sys; {imports}; print(sorted({{'torch', 'scipy', 'sklearn'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
