"""Would the tests notice a fault? `python tools/mutation.py --module bounds --n 100 --seed 0 --jobs 2`.

Breaks a module in n places, one at a time, and counts how often its tests notice (the files of the folder that mirrors
its own, if they bear its name or import it), or the visible checks of its notebook (run against the module: exported
cells are replaced by imports). Texts (docstrings, messages, annotations) are left alone. It writes a row to
results/mutation.csv, and what nobody noticed to results/mutation_survivors.csv. A mutant that runs into the timeout was
noticed. Mutants that change nothing count as survivors, so the score is a lower bound.
`--only-survivors` judges the listed survivors again, once tests were added; the module must be as it was.
"""

import argparse
import ast
import copy
import csv
import importlib
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS="1", MPLBACKEND="agg", PYTHONHASHSEED="0", PYTHONDONTWRITEBYTECODE="1")
ROOT = Path(__file__).resolve().parent.parent
MODULES = dict(
    information="01_information",
    bounds="07_bounds",
    permutation="08_permutation",
    scores="12_scores",
    tcmax="19_tcmax",
    exchange="19b_exchange",
    pairings="18b_pairings",
    mcr="20_mcr",
    shapley="21_shapley",
    modulation="22_modulation",
)

# ---------------------------------------------------------------- mutants

COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARE |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div}
ARITHMETIC |= {ast.Mod: ast.Div, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
NAMES = dict(
    min="max", amin="amax", minimum="maximum", argmin="argmax", any="all", zeros="ones", floor="ceil", mean="sum"
)
NAMES |= {b: a for a, b in NAMES.items()} | dict(mean="amax", sum="mean", clamp_min="clamp_max")


def alternatives(node):
    "What may stand in place of a node: pairs of the name of an operator and a new node."
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield "comparison", ast.Compare(node.left, [COMPARE[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield "arithmetic", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield "arithmetic", ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
    elif isinstance(node, ast.BoolOp):
        yield "boolean", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield "unary removed", node.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "constant", ast.Constant(not node.value)
        elif isinstance(node.value, int | float):
            yield "constant", ast.Constant(node.value + 1)
        elif isinstance(node.value, str) and node.value and " " not in node.value:
            yield "constant", ast.Constant(f"XX{node.value}XX")
    elif isinstance(node, ast.IfExp):
        yield "condition", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.If) and not isinstance(node.test, ast.Compare | ast.BoolOp):
        yield "condition", ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Assign) and not isinstance(node.value, ast.Constant):
        yield "value None", ast.Assign(node.targets, ast.Constant(None))
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield "value None", ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call removed", ast.Pass()
    elif isinstance(node, ast.Break | ast.Continue):
        yield "loop", ast.Continue() if isinstance(node, ast.Break) else ast.Break()
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _calls(node):
    args, keywords, name = node.args, node.keywords, node.func
    if isinstance(name, ast.Attribute) and name.attr in NAMES:
        yield "other function", ast.Call(ast.Attribute(name.value, NAMES[name.attr], ast.Load()), args, keywords)
    if isinstance(name, ast.Name) and name.id in NAMES:
        yield "other function", ast.Call(ast.Name(NAMES[name.id], ast.Load()), args, keywords)
    if len(args) == 1 and not keywords and not isinstance(args[0], ast.Starred):
        yield "call removed", args[0]
    elif not args and not keywords and isinstance(name, ast.Attribute):
        yield "call removed", name.value
    if len(args) > 1 and not any(isinstance(a, ast.Starred) for a in args[:2]):
        yield "arguments swapped", ast.Call(name, [args[1], args[0], *args[2:]], keywords)
    if len(args) + len(keywords) > 1:
        for i, arg in enumerate(args):
            if not isinstance(arg, ast.Starred):
                yield "argument removed", ast.Call(name, args[:i] + args[i + 1 :], keywords)
        for i in range(len(keywords)):
            yield "argument removed", ast.Call(name, args, keywords[:i] + keywords[i + 1 :])


def code_nodes(tree):
    "All nodes but texts: docstrings, annotations, messages of errors and warnings, f-strings; and but imports."
    hidden = set()
    for node in ast.walk(tree):
        texts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts.append(node)
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            texts.append(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn"):
            texts.append(node)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            texts.append(node)
        hidden |= {id(inner) for text in texts if isinstance(text, ast.AST) for inner in ast.walk(text)}
    return [(i, node) for i, node in enumerate(ast.walk(tree)) if id(node) not in hidden]


@dataclass
class Mutant:
    index: int  # of the node in `ast.walk`
    choice: int  # of its alternatives
    line: int
    lines: range  # of the statement, without its body
    where: str  # the function or class
    what: str  # the operator
    change: str  # before and after, as text

    def tree(self, source):
        tree = ast.parse(source)
        nodes = list(ast.walk(tree))
        target = nodes[self.index]
        new = copy.deepcopy(list(alternatives(target))[self.choice][1])
        ast.copy_location(new, target)
        for parent in nodes:
            for field, value in ast.iter_fields(parent):
                if value is target:
                    setattr(parent, field, new)
                elif isinstance(value, list):
                    setattr(parent, field, [new if v is target else v for v in value])
        return ast.fix_missing_locations(tree)


def mutants(source):
    "All mutants of a module."
    tree = ast.parse(source)
    place = {}

    def visit(node, lines, where, inside=False):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            where = f"{where}.{node.name}".lstrip(".")
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            lines = range(node.lineno, (body[0].lineno if body else (node.end_lineno or node.lineno) + 1))
            if isinstance(node, ast.FunctionDef | ast.ClassDef) or not inside:
                lines = range(0)  # runs at import, defaults and decorators too: all tests see it
        place[id(node)] = lines, where
        inside = inside or isinstance(node, ast.FunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, lines, where, inside)

    visit(tree, range(0), "")
    for index, node in code_nodes(tree):
        for choice, (what, new) in enumerate(alternatives(node)):
            lines, where = place[id(node)]
            new = ast.fix_missing_locations(ast.copy_location(copy.deepcopy(new), node))
            change = " -> ".join(ast.unparse(n).split("\n")[0][:120] for n in (node, new))
            yield Mutant(index, choice, getattr(node, "lineno", 0), lines, where or "module", what, change)


# ---------------------------------------------------------------- judges


class Mutated(SourceFileLoader):
    "Loads the module from a tree that was changed."

    def __init__(self, name, path, tree):
        super().__init__(name, path)
        self.tree = tree

    def get_code(self, fullname):
        return compile(self.tree, self.path, "exec")


def install(name, path, tree):
    "From now on `import name` gives the changed module."

    class Finder:
        @staticmethod
        def find_spec(fullname, path_=None, target=None):
            if fullname == name:
                return importlib.util.spec_from_file_location(name, path, loader=Mutated(name, str(path), tree))

    sys.meta_path.insert(0, Finder)


class Recorder:
    "A pytest plugin: which lines of the module each test runs, and for how long."

    def __init__(self, path):
        self.path, self.found, self.lines = str(path), {}, set()

    def trace(self, frame, event, arg):
        if frame.f_code.co_filename != self.path:
            return None
        self.lines.add(frame.f_lineno)
        return self.trace

    def pytest_runtest_logstart(self, nodeid, location):
        self.lines, self.start = set(), time.time()
        sys.settrace(self.trace)

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.found[report.nodeid] = [report.outcome, report.duration, []]

    def pytest_runtest_logfinish(self, nodeid, location):
        sys.settrace(None)
        if nodeid in self.found:
            self.found[nodeid][2] = sorted(self.lines)


def run_tests(arguments, plugins=()):
    import hypothesis
    import pytest

    hypothesis.settings.register_profile("mutation", database=None, derandomize=True, phases=["explicit", "generate"])
    options = "-x -q --no-header --tb=no -p no:cacheprovider -p no:randomly -p no:xdist --hypothesis-profile=mutation"
    return pytest.main([*options.split(), *arguments], plugins=list(plugins))


def run_checks(book, name):
    "The cells of a notebook, the exported ones replaced by what the module has under their names."
    space = {"__name__": "__main__"}
    os.chdir(ROOT / "nbs")
    for cell in json.loads((ROOT / "nbs" / f"{book}.ipynb").read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] != "code" or text.startswith(("#| slow", "#| cuda", "#| notest", "#| eval: false")):
            continue
        tree = ast.parse(text)
        if text.startswith("#| export"):
            module = importlib.import_module(name)
            kept: list[ast.stmt] = [s for s in tree.body if isinstance(s, ast.Import | ast.ImportFrom)]
            made = [s for s in tree.body if s not in kept]
            names = {
                n.id for s in made for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
            names |= {s.name for s in made if isinstance(s, ast.FunctionDef | ast.ClassDef)}
            space |= {n: getattr(module, n) for n in names if hasattr(module, n)}
            tree = ast.Module(kept, [])
        exec(compile(tree, f"{book}", "exec"), space)  # noqa: S102


# ---------------------------------------------------------------- children: one process for each mutant


def child(job, seconds=None):
    "Starts a process that does a job and writes what it returns into a file; returns (pid, file)."
    file = tempfile.NamedTemporaryFile(suffix=".json", delete=False).name  # noqa: SIM115
    if pid := os.fork():
        return pid, file
    os.setsid()
    null = os.open(os.devnull, os.O_WRONLY)
    if "MUTATION_DEBUG" not in os.environ:
        os.dup2(null, 1)
        os.dup2(null, 2)
    try:
        Path(file).write_text(json.dumps(job()))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def baseline(name, path, tests, book):
    "What the tests and checks do with the module as it is."
    recorder = Recorder(path)
    run_tests([str(t) for t in tests], [recorder])
    found, recorder.lines, start = recorder.found, set(), time.time()
    sys.settrace(recorder.trace)
    try:
        run_checks(book, name)
        outcome = "passed"
    except Exception:
        outcome = traceback.format_exc()
    sys.settrace(None)
    found["notebook"] = [outcome, time.time() - start, sorted(recorder.lines)]
    foreign = [m for m in sys.modules if m.split(".")[0] not in ("mmlit", "tests", "common", "conftest", "__main__")]
    return dict(found=found, foreign=foreign)


def judge(tree, name, path, judges, book):
    "Returns if nobody notices that the module is made of this tree; else an error."
    install(name, path, tree)
    tests = [j for j in judges if j != "notebook"]
    if tests and run_tests(tests) != 0:
        raise AssertionError("a test failed")
    if "notebook" in judges:
        run_checks(book, name)
    return True


def preload(modules):
    "What all children need is loaded once; the package itself is not, since a child changes it."
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:
            continue


def run_all(jobs, workers):
    'The outcome of each (label, job, seconds): "survived", "killed" or "timeout".'
    waiting, running, done = list(jobs)[::-1], {}, {}
    while waiting or running:
        while waiting and len(running) < workers:
            label, job, seconds = waiting.pop()
            pid, file = child(job)
            running[pid] = label, file, time.time() + seconds
        for pid, (label, file, end) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and time.time() < end:
                continue
            if not ended:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            done[label] = ("survived" if status == 0 else "killed") if ended else "timeout"
            os.unlink(file)
            del running[pid]
        time.sleep(0.02)
    return done


SURVIVORS = ["module", "line", "function", "operator", "change"]


def survivor(module, m):
    "A mutant as a row of the table of survivors."
    return [module, str(m.line), m.where, m.what, m.change]


def last_run(out, module, facts, rows):
    "What the last run found: how many timeouts, and which of the rows of the sample survived."
    if not (out / "mutation.csv").exists():
        raise SystemExit(f"there are no tables in {out}: leave out --only-survivors")
    old, found = (
        [r for r in csv.DictReader((out / name).open()) if r["module"] == module]
        for name in ("mutation.csv", "mutation_survivors.csv")
    )
    listed = [[r[k] for k in SURVIVORS] for r in found]
    if not old or any(old[0][k] != str(v) for k, v in facts.items()) or any(r not in rows for r in listed):
        raise SystemExit(
            f"{module}: the last run was not one with {facts} of the module as it is: leave out --only-survivors"
        )
    return int(old[0]["timeout"]), listed


def measure(module, n, seed, workers, last_in=None):
    "The row of one module and its survivors; if the folder of the last run is given, only those of it are judged."
    path = next(ROOT.glob(f"mmlit/**/{module}.py"))
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    files = sorted((ROOT / "tests" / path.parent.relative_to(ROOT / "mmlit")).glob("test_*.py"))
    tests = [t for t in files if module in t.stem or f"from {name} import" in t.read_text()]
    book, source = MODULES[module], path.read_text()
    everything = list(mutants(source))
    sample = random.Random(seed).sample(everything, min(n, len(everything)))
    rows = [survivor(module, m) for m in sample]
    drawn = dict(seed=seed, mutants=len(everything), sample=len(sample))
    timeouts, again = last_run(last_in, module, drawn, rows) if last_in else (0, rows)

    pid, file = child(lambda: baseline(name, path, tests, book))
    os.waitpid(pid, 0)
    facts = json.loads(Path(file).read_text())
    os.unlink(file)
    found = {k: v for k, v in facts["found"].items() if v[0] == "passed"}
    bad = {k: v[0] for k, v in facts["found"].items() if v[0] not in ("passed", "skipped")}
    if bad:
        raise SystemExit(f"{module}: fails without any mutant: {bad}")
    preload(facts["foreign"])
    control = [("control", lambda: judge(ast.parse(source), name, path, list(found), book), 3600)]
    if run_all(control, 1)["control"] != "survived":
        raise SystemExit(f"{module}: the module without any mutant is taken for a mutant; see MUTATION_DEBUG=1")

    jobs = []
    for i, mutant in enumerate(sample):
        if rows[i] not in again:
            continue
        see = [k for k, (_, _, lines) in found.items() if not mutant.lines or set(mutant.lines) & set(lines)]
        see.sort(key=lambda k: (k == "notebook", found[k][1]))
        seconds = 20 + 4 * sum(found[k][1] for k in see)
        jobs.append((i, lambda m=mutant, s=see: judge(m.tree(source), name, path, s, book), seconds))
    outcome = run_all(jobs, workers)
    survivors = [rows[i] for i in sorted(outcome) if outcome[i] == "survived"]
    timeouts += sum(v == "timeout" for v in outcome.values())
    count = dict(killed=len(sample) - len(survivors) - timeouts, survived=len(survivors), timeout=timeouts)
    return dict(module=module, **drawn, **count, score=round(1 - len(survivors) / len(sample), 4)), survivors


def write(file, header, rows, module):
    "Rows of the other modules stay as they are."
    old = list(csv.reader(file.open()))[1:] if file.exists() else []
    rows = sorted([[str(v) for v in r] for r in rows] + [r for r in old if r[0] != module], key=lambda r: r[0])
    with file.open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([header, *rows])


def main():
    parser = argparse.ArgumentParser(description="Would the tests notice a fault?")
    parser.add_argument(
        "--module", action="append", choices=list(MODULES), help="all of them if left out; can be repeated"
    )
    parser.add_argument("--n", type=int, default=100, help="mutants of a module, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only-survivors", action="store_true", help="judge those of the last run again")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the tables")
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for module in given.module or MODULES:
        start = time.time()
        row, survivors = measure(module, given.n, given.seed, given.jobs, given.only_survivors and given.out)
        write(given.out / "mutation.csv", list(row), [list(row.values())], module)
        write(given.out / "mutation_survivors.csv", SURVIVORS, survivors, module)
        print(*(f"{k} {v}" for k, v in row.items()), f"({time.time() - start:.0f} s)", flush=True)
        for _, line, where, what, change in survivors:
            print(f"  {line}: {where}: {what}: {change}")


if __name__ == "__main__":
    main()
