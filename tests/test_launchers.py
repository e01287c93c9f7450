"""Launchers and accelerate's configs: what they start, and what they say when something is missing."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = ROOT / "launchers"
NAMES = sorted(path.name for path in LAUNCHERS.iterdir() if path.name != "common.sh")
CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def launcher(name: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher without the environment of a Slurm job or of another launcher."""
    foreign = ("SLURM_", "NUM_NODES", "NODE_RANK", "MAIN_", "PROCESSES_PER_NODE", "HOSTFILE", "ACCELERATE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return subprocess.run(
        ["bash", LAUNCHERS / name, *arguments],
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def local(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return launcher("local.sh", *arguments, **environ)


def multinode(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return launcher("multinode.sh", *arguments, **environ)


def check_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    """Exit status 2, one sentence on standard error, nothing started."""
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter that has every module and prints its arguments, one a line."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\n[ "$1" = -c ] || printf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_config_and_starts_ranks_with_it(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.distributed_type == "MULTI_GPU", "what starts ranks with and without GPUs"
    assert config.num_processes >= 2
    assert config.use_cpu == path.stem.startswith("cpu")
    assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"


@pytest.mark.parametrize("name", NAMES)
def test_help_is_printed(name: str) -> None:
    done = launcher(name, "--help")
    assert done.returncode == 0
    assert re.match(rf"usage: .*launchers/{name}", done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_a_launcher_can_be_run_and_stops_at_errors(name: str) -> None:
    assert os.access(LAUNCHERS / name, os.X_OK)
    assert "\nset -euo pipefail\n" in (LAUNCHERS / name).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the number of processes is missing"),
        (("two", "run"), "the number of processes is 'two'"),
        (("0", "run"), "the number of processes is '0'"),
        (("2",), "the command is missing"),
    ],
)
def test_what_is_missing_is_said(arguments: tuple[str, ...], message: str, python: str) -> None:
    check_refused(local(*arguments, PYTHON=python), message)


def test_a_missing_interpreter_or_package_is_said(tmp_path: Path) -> None:
    assert "was not found; run make install" in local("2", "run", PYTHON="/no/python").stderr
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    assert "has no accelerate; run make install" in local("2", "run", PYTHON=str(bare)).stderr


def test_one_process_needs_no_launcher(python: str) -> None:
    lines = local("1", "run", "--config", "a b.yaml", PYTHON=python).stdout.splitlines()
    assert lines == [
        f"+ {python} -m csrec_dist run --config a\\ b.yaml",
        "-m",
        "csrec_dist",
        "run",
        "--config",
        "a b.yaml",
    ]


def test_several_processes_start_under_accelerate(python: str) -> None:
    lines = local("3", "run", "--set", "name=a b", PYTHON=python, MAIN_PORT="29999").stdout.splitlines()
    command = lines[1:]
    assert command[:2] == ["-m", "accelerate.commands.launch"]
    assert value(command, "--num_processes") == "3"
    assert value(command, "--main_process_port") == "29999"
    assert "--multi_gpu" in command
    assert "--max_restarts" not in command
    assert command[-5:] == ["-m", "csrec_dist", "run", "--set", "name=a b"]
    assert lines[0].startswith(f"+ {python} -m accelerate.commands.launch")


def test_an_engine_comes_from_the_config_of_accelerate(python: str, tmp_path: Path) -> None:
    config = str(CONFIGS[0])
    command = local("1", "run", PYTHON=python, ACCELERATE_CONFIG=config, MAX_RESTARTS="3").stdout.splitlines()[1:]
    assert value(command, "--config_file") == config
    assert value(command, "--deepspeed_multinode_launcher") == "standard"
    assert value(command, "--max_restarts") == "3"
    assert "--multi_gpu" not in command
    missing = str(tmp_path / "none.yaml")
    check_refused(local("2", "run", PYTHON=python, ACCELERATE_CONFIG=missing), f"{missing} does not exist")
    check_refused(local("2", "run", PYTHON=python, MAX_RESTARTS="often"), "MAX_RESTARTS is 'often'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "the number of machines is missing"),
        (("--num-nodes", "2", "run"), "this machine's rank is missing"),
        (("--num-nodes", "two", "run"), "the number of machines is 'two'"),
        (("--num-nodes", "2", "--node-rank", "2", "--address", "a", "run"), "the ranks of 2 machines end at 1"),
        (("--num-nodes", "2", "--node-rank", "0", "run"), "the address of machine 0 is missing"),
        (("--num-nodes", "2", "--node-rank", "0", "--address", "a"), "the command is missing"),
        (("--num-nodes", "1", "--processes", "0", "run"), "the number of processes on a machine is '0'"),
        (("--num-nodes", "1", "--port", "http", "run"), "the port is 'http'"),
        (("--num-nodes",), "--num-nodes has no value"),
        (("--machines", "2"), "there is no option --machines"),
    ],
)
def test_what_a_machine_must_know_is_said(arguments: tuple[str, ...], message: str, python: str) -> None:
    check_refused(multinode(*arguments, PYTHON=python), message)


def test_options_and_environment_of_a_machine_are_the_same(python: str) -> None:
    options = {"--num-nodes": "3", "--node-rank": "1", "--address": "10.0.0.1", "--port": "1234", "--processes": "4"}
    words = [word for pair in options.items() for word in pair]
    by_option = multinode(*words, "run", "--set", "name=a b", PYTHON=python).stdout
    names = ("NUM_NODES", "NODE_RANK", "MAIN_ADDRESS", "MAIN_PORT", "PROCESSES_PER_NODE")
    environ = dict(zip(names, options.values(), strict=True))
    assert multinode("run", "--set", "name=a b", PYTHON=python, **environ).stdout == by_option
    command = by_option.splitlines()[1:]
    assert value(command, "--num_machines") == "3"
    assert value(command, "--num_processes") == "12", "those of all machines"
    assert value(command, "--machine_rank") == "1"
    assert value(command, "--main_process_ip") == "10.0.0.1"
    assert value(command, "--main_process_port") == "1234"
    assert command[-5:] == ["-m", "csrec_dist", "run", "--set", "name=a b"]


def test_a_machine_takes_its_rank_from_slurm(python: str) -> None:
    done = multinode("--num-nodes", "2", "--address", "a", "run", PYTHON=python, SLURM_NODEID="1")
    assert value(done.stdout.splitlines(), "--machine_rank") == "1"


def test_a_machine_alone_within_a_job_is_the_first(python: str) -> None:
    done = multinode("--num-nodes", "1", "--processes", "2", "run", PYTHON=python, SLURM_NODEID="1")
    assert done.returncode == 0, done.stderr
    assert value(done.stdout.splitlines(), "--num_processes") == "2"


@pytest.mark.parametrize(
    ("visible", "processes"),
    [(None, "8"), ("0,1", "4"), ("GPU-a1,GPU-b2,GPU-c3", "6"), ("", "2"), ("-1", "2"), ("3,-1,2", "2")],
)
def test_a_process_for_each_gpu_that_may_be_used(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, processes: str
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf 'GPU %s\\n' 0 1 2 3\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    done = multinode("--num-nodes", "2", "--node-rank", "0", "--address", "a", "run", PYTHON=python)
    assert value(done.stdout.splitlines(), "--num_processes") == processes


def test_machines_that_restart_meet_again(python: str) -> None:
    for rank, host in (("0", "is_host=1"), ("1", "is_host=0")):
        options = ("--num-nodes", "2", "--node-rank", rank, "--address", "a", "run")
        command = multinode(*options, PYTHON=python, MAX_RESTARTS="1").stdout.splitlines()
        assert value(command, "--rdzv_backend") == "c10d"
        assert value(command, "--rdzv_conf") == host
        assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in command[0].split()


def test_processes_of_one_machine_that_restart_meet_again(python: str) -> None:
    alone = ("--num-nodes", "1", "--processes", "2")
    for done in (
        local("2", "run", PYTHON=python, MAX_RESTARTS="1"),
        multinode(*alone, "run", PYTHON=python, MAX_RESTARTS="1"),
    ):
        shown = done.stdout.splitlines()[0]
        assert shown.startswith(f"+ env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 PET_STANDALONE=1 {python} ")
        assert " --max_restarts 1 " in shown


def test_one_process_that_is_to_be_restarted_has_a_launcher(python: str) -> None:
    alone = ("--num-nodes", "1", "--processes", "1")
    for done in (
        local("1", "run", PYTHON=python, MAX_RESTARTS="2"),
        multinode(*alone, "run", PYTHON=python, MAX_RESTARTS="2"),
    ):
        command = done.stdout.splitlines()[1:]
        assert command[:3] == ["-m", "torch.distributed.run", "--standalone"], "accelerate would not restart it"
        assert (value(command, "--nproc_per_node"), value(command, "--max_restarts")) == ("1", "2")
        assert command[-3:] == ["-m", "csrec_dist", "run"]
    for done in (local("1", "run", PYTHON=python, MAX_RESTARTS="0"), multinode(*alone, "run", PYTHON=python)):
        assert done.stdout.splitlines()[1:] == ["-m", "csrec_dist", "run"]


def test_one_machine_needs_no_address(python: str) -> None:
    alone = multinode("--num-nodes", "1", "--processes", "1", "run", PYTHON=python).stdout.splitlines()[1:]
    assert alone == ["-m", "csrec_dist", "run"]
    several = multinode("--num-nodes", "1", "--processes", "2", "run", PYTHON=python).stdout.splitlines()[1:]
    assert value(several, "--num_machines") == "1"
    assert "--main_process_ip" not in several


@pytest.mark.parametrize(
    ("environ", "arguments", "message"),
    [
        ({}, ("run",), "this is no Slurm job; submit it with sbatch"),
        ({"SLURM_JOB_ID": "7"}, (), "the command is missing"),
        ({"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "/"}, ("run",), "/ is no checkout of csrec_dist"),
    ],
)
def test_what_a_job_lacks_is_said(environ: dict[str, str], arguments: tuple[str, ...], message: str) -> None:
    check_refused(launcher("slurm.sbatch", *arguments, **environ), message)


def test_a_job_is_queued_again_and_warned() -> None:
    options = re.findall(r"^#SBATCH (.*)$", (LAUNCHERS / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(options)
    assert any(option.startswith("--signal=B:TERM@") for option in options)


@pytest.mark.parametrize(
    ("environ", "arguments", "added"),
    [
        ({"CSREC_LOCAL_DISK": "/nvme"}, ["run", "--config", "c.yaml"], ["--set", "labels.copy_to=/nvme"]),
        ({"SLURM_TMPDIR": "/a b"}, ["distill", "--config=c.yaml"], ["--set", "labels.copy_to=/a b"]),
        ({"SLURM_TMPDIR": "/nvme"}, ["doctor", "--config", "c.yaml"], []),
        ({"SLURM_TMPDIR": "/nvme"}, ["tune", "--config", "c.yaml"], []),
        ({"CSREC_LOCAL_DISK": "", "SLURM_TMPDIR": "/tmp"}, ["run", "--config", "c.yaml"], []),
        ({"CSREC_LOCAL_DISK": "/nvme"}, ["run", "--config", "c.yaml", "--set", "labels.copy_to=/mine"], []),
        ({"CSREC_LOCAL_DISK": "/nvme"}, ["report", "runs/demo"], []),
        ({}, ["run", "--config", "c.yaml"], []),
    ],
)
def test_a_job_tells_of_the_nodes_own_disks(
    tmp_path: Path, environ: dict[str, str], arguments: list[str], added: list[str]
) -> None:
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\necho 10.0.0.1\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[0-1]", "MAIN_ADDRESS": "10.0.0.1"}
    paths = {"SLURM_SUBMIT_DIR": str(LAUNCHERS.parent), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = launcher("slurm.sbatch", *arguments, **job, **paths, **environ)
    command = next(shlex.split(line) for line in said.stdout.splitlines() if line.startswith("+ srun"))
    assert command[command.index(arguments[0]) :] == arguments + added


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hostfile"
    path.write_text("# two machines\nfirst slots=2\n\nsecond slots=2  # the other\n")
    return path


def test_a_dry_run_prints_the_command_of_each_machine(hostfile: Path) -> None:
    environ = {"SSH": "true", "MAIN_PORT": "1234", "NCCL_DEBUG": "INFO"}
    arguments = ("--hostfile", str(hostfile), "--dry-run", "run", "--set", "name=a 'b'")
    lines = launcher("deepspeed.sh", *arguments, **environ).stdout.splitlines()
    assert len(lines) == 2
    for rank, (host, line) in enumerate(zip(("first", "second"), lines, strict=True)):
        *ssh, remote = shlex.split(line)
        assert ssh == ["+", "true", host]
        command = shlex.split(remote.split("; status=")[0])
        assert command[:6] == ["cd", os.getcwd(), "&&", "mkdir", "-m", "700"]
        assert command[7:10] == ["&&", "{", "env"]
        assert command[10] == f"PID_FILE={command[6]}/pid"
        assert not Path(command[6].removesuffix(f"-{rank}")).exists()
        assert "NCCL_DEBUG=INFO" in command
        expected = {"--num-nodes": "2", "--node-rank": str(rank), "--address": "first", "--port": "1234"}
        assert {option: value(command, option) for option in expected} == expected
        assert value(command, "--processes") == "2"
        assert command[-3:] == ["run", "--set", "name=a 'b'"]
    assert "pdsh" not in "".join(lines)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "names no machine"),
        ("first\n", "has the line 'first'; write HOST slots=K"),
        ("first slots=two\n", "has the line 'first slots=two'"),
        ("first slots=2\nsecond slots=3\n", "gives second 3 slots, but 2 before"),
    ],
)
def test_a_wrong_hostfile_is_refused(lines: str, message: str, hostfile: Path) -> None:
    hostfile.write_text(lines)
    check_refused(launcher("deepspeed.sh", "--hostfile", str(hostfile), "run", SSH="true"), message)


def test_what_a_hostfile_run_lacks_is_said(hostfile: Path, tmp_path: Path) -> None:
    check_refused(launcher("deepspeed.sh", "run"), "the hostfile is missing")
    check_refused(launcher("deepspeed.sh", "--hostfile", "/no/file", "run"), "/no/file does not exist")
    check_refused(launcher("deepspeed.sh", "--hostfile", str(hostfile), SSH="true"), "the command is missing")
    nothing = str(tmp_path / "no-ssh")
    check_refused(launcher("deepspeed.sh", "--hostfile", str(hostfile), "run", SSH=nothing), f"{nothing} was not found")


def test_a_machine_that_fails_ends_the_others(hostfile: Path, tmp_path: Path) -> None:
    """The first machine works until it is told to stop."""
    os.mkfifo(tmp_path / "fifo")
    ssh = tmp_path / "ssh"
    ssh.write_text(
        "#!/bin/sh\n"
        'case "$1 $2" in\n'
        f'  "first test ! -f"*) echo "$1" >>{tmp_path}/told; echo >{tmp_path}/fifo ;;\n'
        f'  *"test ! -f"*) echo "$1" >>{tmp_path}/told ;;\n'
        f"  first*) read -r line <{tmp_path}/fifo ;;\n"
        "  second*) exit 7 ;;\n"
        "esac\n"
    )
    ssh.chmod(0o755)
    done = launcher("deepspeed.sh", "--hostfile", str(hostfile), "run", SSH=str(ssh))
    assert done.returncode == 7
    assert (tmp_path / "told").read_text().split() == ["first", "second"]


def machine(tmp_path: Path, before: str = ":") -> str:
    """An ssh that runs the command here, after `before`, which knows the folder of the process id as $folder."""
    ssh = tmp_path / "ssh"
    ssh.write_text(
        "#!/bin/bash\n"
        'case "$2" in "test ! -f"*) exit ;; esac\n'
        'folder=$(grep -o "/tmp/csrec-[^/ ]*" <<<"$2" | head -n 1)\n'
        f'{before}\nbash -c "$2"\nstatus=$?\n[[ ! -L $folder ]] || rm "$folder"\nexit $status\n'
    )
    ssh.chmod(0o755)
    return str(ssh)


def test_process_ids_are_left_in_a_folder_of_the_user_alone(tmp_path: Path, hostfile: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nstat -c "%a $(dirname "$PID_FILE")" "$(dirname "$PID_FILE")" >>{tmp_path}/seen\n')
    python.chmod(0o755)
    for _ in range(2):
        done = launcher("deepspeed.sh", "--hostfile", str(hostfile), "run", SSH=machine(tmp_path), PYTHON=str(python))
        assert done.returncode == 0, done.stderr
    modes, folders = zip(*(line.split() for line in (tmp_path / "seen").read_text().splitlines()), strict=True)
    assert set(modes) == {"700"}
    assert len(set(folders)) == 4
    assert not any(Path(folder).exists() for folder in folders)


def test_a_link_planted_where_the_process_id_goes_is_not_followed(tmp_path: Path, hostfile: Path) -> None:
    ssh = machine(tmp_path, f'ln -s {tmp_path}/victim "$folder"')
    done = launcher("deepspeed.sh", "--hostfile", str(hostfile), "run", SSH=ssh, PYTHON="true")
    assert done.returncode != 0
    assert "File exists" in done.stderr
    assert not (tmp_path / "victim").exists()
