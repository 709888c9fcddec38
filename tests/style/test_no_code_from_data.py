"""Nothing that mads reads can become code: no pickle, no eval, no shell, no unsafe YAML, arrays without objects."""

import ast

import pytest
from source_tree import ROOT

FOLDERS = ("mads", "launch", "kernels", "conf", "benchmarks")
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}  # called by their bare names; model.eval() is another thing
CALLS = {  # dotted name of a call -> what it may not do, as a test of the call
    "torch.load": lambda call: not _is(call, "weights_only", True),
    "torch.save": lambda call: True,
    "torch.jit.load": lambda call: True,
    "os.system": lambda call: True,
    "os.popen": lambda call: True,
    "subprocess.getoutput": lambda call: True,
    "subprocess.getstatusoutput": lambda call: True,
    "yaml.load": lambda call: True,
    "yaml.load_all": lambda call: True,
    "yaml.unsafe_load": lambda call: True,
    "yaml.full_load": lambda call: True,
    "np.load": lambda call: _given(call, "allow_pickle") and not _is(call, "allow_pickle", False),
    "shutil.unpack_archive": lambda call: True,
}
METHODS = {"extractall", "extract", "unpack_archive"}  # of archives: their members are read, never unpacked


def _given(call, name):
    return any(k.arg == name for k in call.keywords)


def _is(call, name, value):
    return any(k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def complaints(source: str) -> list[str]:
    """Line and what is wrong there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"{node.lineno}: imports {n}" for n in names if n.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).replace("numpy.", "np.")
        if isinstance(node.func, ast.Name) and name in BUILTINS:
            found.append(f"{node.lineno}: calls {name}")
        if name in CALLS and CALLS[name](node):
            found.append(f"{node.lineno}: calls {name}")
        if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            found.append(f"{node.lineno}: calls {node.func.attr}")
        found += [
            f"{node.lineno}: {k.arg}={ast.unparse(k.value)}"
            for k in node.keywords
            if (k.arg == "shell" and not _is(node, "shell", False))
            or (k.arg == "trust_remote_code" and not _is(node, "trust_remote_code", False))
            or (k.arg == "weights_only" and not _is(node, "weights_only", True))
            or (k.arg == "allow_pickle" and not _is(node, "allow_pickle", False))
        ]
    return found


def test_no_data_becomes_code():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    wrong = {path.relative_to(ROOT).as_posix(): complaints(path.read_text()) for path in files}
    assert len(files) > 150 and {path: found for path, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    "source, wrong",
    [
        ("import pickle", True),
        ("from pickle import loads", True),
        ("import joblib.externals", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=flag)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path)", False),
        ("numpy.load(path, allow_pickle=True)", True),
        ("np.load(path, allow_pickle=False)", False),
        ("eval('1')", True),
        ("model.eval()", False),
        ("exec(code)", True),
        ("re.compile('x')", False),
        ("subprocess.run('x', shell=True)", True),
        ("subprocess.run(['x'], shell=flag)", True),
        ("subprocess.run(['x'])", False),
        ("yaml.load(text, Loader=x)", True),
        ("yaml.safe_load(text)", False),
        ("archive.extractall('x')", True),
        ("f.from_pretrained(p, trust_remote_code=True)", True),
    ],
)
def test_the_checker_can_tell(source, wrong):
    assert bool(complaints(source)) == wrong
