import json
import os
import platform
import socket
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version

from hoyer_export import environment
from hoyer_export.environment import environment_record


def test_the_record_holds_the_versions_of_what_is_installed_and_nothing_of_what_is_not(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert environment_record().versions == {"torch": version("torch")}


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
