#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: lint.py [--build DIR] [CHECK...]

The rules of the tree that a compiler does not check. Each check is a function that yields one line
per breach and raises Skip where this machine lacks what it needs. Without names all run. Exit
status: 0 kept, 1 broken, 77 (one check only) skipped; with STRICT=1 a skip is a breach.

`lint.py list` writes the list of files in ARCHITECTURE.md anew, from what each file says about itself
in its opening comment; `lint.py options` does the same with the options in the man pages, from what
the programs' --help says.
"""
import argparse
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build"
SKIP_STATUS = 77

# A folder may use those before it, never those behind it (design: "Shape of the code").
LAYERS = ["lib/base", "lib/loop", "lib/wire", "lib/net", "lib/relay", "lib/guest", "providers",
          "adaptor", "keeper", "forwarder", "ctl", "bench", "test"]
# These run in the pod VM too and use nothing but lib/.
LIB_ONLY = {"keeper", "forwarder"}
PROVIDERS = ["local", "libvirt", "aws", "azure", "gcp", "byom"]
MODULES = ["base", "loop", "wire", "net", "relay", "tunnel", "guest", "provider", "providers",
           *PROVIDERS, "adaptor", "kube", "keeper", "forwarder", "ctl", "agent", "plain", "podnet", "stepfault",
           "fuzz", "chain", "deploy", "bench", "lint", "rpc", "hardening", "foreign"]

PROGRAMS = ["cloud-api-adaptor", "agent-protocol-forwarder", "process-user-data", "peerpod-keeper",
            "peerpodctl"]

FUNCTION_MAX = 60
# What must never fail is small enough to be read in one sitting: the keeper, with its end of the protocol.
SMALL = {"keeper": (["keeper/", "lib/relay/fdtable"], 600)}
# Longer ones that are better whole, each with its reason.
LONG_FUNCTIONS = {
    "ctl/shim.c:send_spec": "one message, its fields in order",
    "test/unit/net_link_test.c:test_veth_into_namespace": "one story",
    "test/unit/relay_relay_test.c:hostile_files_are_refused": "a table of cases",
}
MAIN_FUNCTIONS_MAX = 15
MAIN_FUNCTION_LINES_MAX = 45
MAIN_LINES_MAX = 300
BLOB_MAX = 1 << 20

FORMAT_MAJOR = "14"
SENTENCE_MAX = 130
LISTING = "## Every file\n"


class Skip(Exception):
    """The machine lacks what the check needs."""


@functools.lru_cache(maxsize=None)
def tracked():
    """Every file of the tree as a path relative to it: git's list, so that new files count."""
    try:
        out = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"],
                             check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        out = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")
               if p.is_file() and not {"build", ".git", "__pycache__"} & set(p.parts)]
    return sorted(name for name in set(out) if (ROOT / name).is_file())


def text(name):
    return (ROOT / name).read_text(errors="replace")


def c_files():
    return [n for n in tracked() if n.endswith((".c", ".h"))]


def shell_files():
    return [n for n in tracked() if n.endswith(".sh") or "." not in pathlib.Path(n).name
            and text(n).startswith("#!") and "sh" in text(n).splitlines()[0]]


# -- layers --

def layer_of(name):
    for layer in sorted(LAYERS, key=len, reverse=True):
        if name.startswith(layer + "/"):
            return layer
    return None


def generated(include):
    """The tree's path that a generated header stands for, or None."""
    if not include.endswith(".pb-c.h"):
        return None
    base = pathlib.Path(include).name[:-len(".pb-c.h")]
    found = [n for n in tracked() if n.endswith(f"/proto/{base}.proto")]
    return found[0] if found else None


def resolve(name, include):
    """Where a quoted include leads: relative to the file, to lib/, to the root, to test/."""
    folder = pathlib.Path(name).parent
    for base in (folder, pathlib.Path("lib"), pathlib.Path("."), pathlib.Path("test")):
        path = os.path.normpath(base / include)
        if path in tracked():
            return path
    return generated(include)


def include_breaches(name, include):
    target = resolve(name, include)
    if target is None:
        yield f"{name}: \"{include}\" leads nowhere"
        return
    here, there = layer_of(name), layer_of(target)
    if here is None or there is None or here == there == "test":
        return
    if here in LIB_ONLY and not there.startswith("lib/") and there != here:
        yield f"{name}: {here} runs in the pod VM and uses lib/ alone, not {target}"
    elif LAYERS.index(there) > LAYERS.index(here):
        yield f"{name}: {here} must not use {there} ({target}), which stands behind it"
    elif here == there == "providers":
        mine, theirs = pathlib.Path(name).parts[1], pathlib.Path(target).parts[1]
        if theirs in PROVIDERS and mine != theirs and name != "providers/registry.c":
            yield f"{name}: a provider must not use another one ({target})"


def check_layers():
    for name in c_files():
        for include in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text(name), re.M):
            yield from include_breaches(name, include)
    for name in c_files():
        if pathlib.Path(name).name == "main.c" and not name.startswith("test/"):
            bodies = list(functions(name))
            if len(bodies) > MAIN_FUNCTIONS_MAX:
                yield f"{name}: {len(bodies)} functions; a main file parses, builds, runs, frees"
            for function, line, length in bodies:
                if length > MAIN_FUNCTION_LINES_MAX:
                    yield f"{name}:{line}: {function} does more than parse, build, run, free"
            if text(name).count("\n") > MAIN_LINES_MAX:
                yield f"{name}: more than {MAIN_LINES_MAX} lines; a main file only starts things"


# -- functions --

def functions(name):
    """(function, first line, lines of its body): the layout puts its braces into column 1."""
    lines = text(name).splitlines()
    start = None
    for i, line in enumerate(lines):
        if line == "{":
            start = i
        elif line.startswith("}") and start is not None:
            head = " ".join(lines[max(0, start - 6):start])
            head = re.split(r"[;}]|\*/", head)[-1]
            found = re.search(r"(\w+)\s*\(", head)
            yield found.group(1) if found else "?", start, i - start - 1
            start = None


def check_functions():
    for name in c_files():
        for function, line, length in functions(name):
            if length > FUNCTION_MAX and f"{name}:{function}" not in LONG_FUNCTIONS:
                yield f"{name}:{line}: {function} has {length} lines, more than {FUNCTION_MAX}"


def code_lines(name):
    """How many lines are neither blank nor comment."""
    strings = r'"(?:\\.|[^"\\])*"'
    bare = re.sub(rf"({strings})|/\*.*?\*/|//[^\n]*", lambda m: m.group(1) or "", text(name), flags=re.S)
    return sum(1 for line in bare.splitlines() if line.strip())


def check_small():
    for what, (prefixes, most) in SMALL.items():
        n = sum(code_lines(name) for name in c_files() if name.startswith(tuple(prefixes)))
        if n >= most:
            yield f"{what}: {n} lines of code in {', '.join(prefixes)}, not under {most}"


# -- every file --

def needs_spdx(name):
    path = pathlib.Path(name)
    return (path.suffix in (".c", ".h", ".py", ".sh", ".cmake", ".proto", ".yaml", ".yml",
                            ".service", ".timer", ".path", ".socket")
            or path.name in ("CMakeLists.txt", "Makefile", ".clang-format", ".clang-tidy")
            or text(name).startswith("#!"))


def check_spdx():
    for name in tracked():
        if "/corpus/" in name or not needs_spdx(name):
            continue
        lines = text(name).splitlines() or [""]
        at = 1 if lines[0].startswith("#!") and len(lines) > 1 else 0
        if "SPDX-License-Identifier: Apache-2.0" not in lines[at]:
            yield f"{name}: its first line is not the SPDX line"
        elif name.endswith(".c") and (len(lines) < 3 or not lines[1].startswith("/*")):
            yield f"{name}: does not open with its theory of operation"


def check_hosts():
    # Put together here, so that this file does not hold what it forbids.
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "npmjs" + ".com",
             "crates" + ".io", "golang" + ".org", "deb.debian" + ".org", "debian" + ".org/debian",
             "yarnpkg" + ".com", "rubygems" + ".org", "maven" + ".org"]
    machine = re.compile(r"(?<![\w.*$}/-])/(?:work|root|home)/[\w.]")
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" in data or len(data) > BLOB_MAX:
            yield f"{name}: a binary or a very large file"
            continue
        try:
            content = data.decode()
        except UnicodeDecodeError as error:
            yield f"{name}: not UTF-8: {error}"
            continue
        for number, line in enumerate(content.splitlines(), 1):
            for host in hosts:
                # Go's module names look like hosts, and no tool is told to go there by them.
                if host in line and not name.startswith(("test/go/", "test/foreign/go/")):
                    yield f"{name}:{number}: names the package registry {host}"
            if machine.search(line):
                yield f"{name}:{number}: a path of one machine: {machine.search(line).group()}"


# -- architecture --

def architecture_must_name():
    return [n for n in tracked() if n.endswith((".c", ".h", ".proto", ".py", ".sh"))
            or n.startswith(("scripts/", "deploy/", ".ci/")) and not n.endswith("CMakeLists.txt")]


def architecture_names():
    names = set()
    for word in re.findall(r"`([^`\s]+)`", text("ARCHITECTURE.md")):
        if word.endswith(".[ch]"):
            names |= {word[:-4] + "c", word[:-4] + "h"}
        elif "/" in word and re.search(r"\.(c|h|proto|py|sh)$", word) and "*" not in word \
                and not word.startswith("/"):
            names.add(word)
        elif word.startswith(("scripts/", "deploy/", ".ci/")) and not word.endswith("/"):
            names.add(word)
    return names


def check_architecture():
    named, there = architecture_names(), set(architecture_must_name())
    for name in sorted(there - named):
        yield f"ARCHITECTURE.md does not name {name} (test/lint/lint.py list)"
    for name in sorted(named - there):
        if not (ROOT / name).exists():
            yield f"ARCHITECTURE.md names {name}, which does not exist"
    code = "".join(text(n) for n in c_files())
    told = text("ARCHITECTURE.md").split(LISTING)[0]
    for word in sorted(set(re.findall(r"`(?:struct )?([a-z]+_[a-z_]+)`", told))):
        if not re.search(rf"\b{word}\b", code):
            yield f"ARCHITECTURE.md speaks of {word}, which is nowhere in the code"


def first_sentence(name):
    """What the file says about itself first: the opening comment, without usage and headings."""
    content = re.sub(r"^(/\*|#|//|<!--) SPDX.*\n", "", re.sub(r"^#!.*\n", "", text(name)))
    found = re.match(r"\s*(?:/\*+(.*?)\*/|\"\"\"(.*?)\"\"\"|((?:(?:#|//).*\n)+))", content, re.S)
    if not found:
        return "?"
    lines = [re.sub(r"^[ \t]*(\*|#|//)?[ \t]?", "", line)
             for line in next(g for g in found.groups() if g).splitlines()]
    lines = [line for line in lines if not re.match(r"usage:|Theory of operation\s*$", line)]
    words = "\n".join(lines).strip().split("\n\n")[0].replace("\n", " ")
    sentence = re.split(r"(?<=[a-z)\"])\. ", words)[0].rstrip(".:") or "?"
    if len(sentence) > SENTENCE_MAX:
        sentence = re.split(r"[,;:(][^,;:(]*$", sentence[:SENTENCE_MAX])[0].rstrip()
    return sentence


def listing():
    """The list of files: a heading for each folder, a line for each file or pair."""
    lines, folder, files = [], None, architecture_must_name()
    for name in files:
        if name.endswith(".h") and name[:-1] + "c" in files:
            continue
        here = str(pathlib.Path(name).parent)
        if here != folder:
            lines += ["", f"### {here}", ""]
            folder = here
        pair = name.endswith(".c") and name[:-1] + "h" in files
        says = first_sentence(name[:-1] + "h") if pair else first_sentence(name)
        lines.append(f"- `{name[:-1] + '[ch]' if pair else name}`: {says}")
    return lines


def write_listing():
    content = text("ARCHITECTURE.md")
    head = content[:content.index(LISTING)]
    (ROOT / "ARCHITECTURE.md").write_text(head + LISTING + "\n" + "\n".join(listing()) + "\n")


# -- tools --

def tool(name):
    path = shutil.which(name)
    if path is None:
        raise Skip(f"{name} is not installed")
    return path


def check_format():
    program = tool("clang-format")
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    if f"version {FORMAT_MAJOR}." not in version:
        raise Skip(f"clang-format {FORMAT_MAJOR} wanted, this is: {version.strip()}")
    out = subprocess.run([program, "--dry-run", "-Werror", *[str(ROOT / n) for n in c_files()]],
                         capture_output=True, text=True)
    files = sorted({line.split(":")[0] for line in out.stderr.splitlines() if ": error:" in line})
    for name in files:
        yield f"{os.path.relpath(name, ROOT)}: not formatted (make format)"
    if out.returncode != 0 and not files:
        yield out.stderr.strip()


def check_shell():
    program = tool("shellcheck")
    files = [str(ROOT / n) for n in shell_files()]
    out = subprocess.run([program, "-x", "-f", "gcc", *files], capture_output=True, text=True)
    yield from out.stdout.replace(str(ROOT) + "/", "").splitlines()


# -- tests and targets --

def ctest_names():
    if not (BUILD / "CTestTestfile.cmake").exists():
        return []
    out = subprocess.run(["ctest", "--test-dir", str(BUILD), "--show-only=json-v1"],
                         check=True, capture_output=True, text=True).stdout
    return [test["name"] for test in json.loads(out)["tests"]]


def check_names():
    tests = ctest_names()
    for name in tests:
        if not re.fullmatch(r"[a-z]+(\.[a-z0-9_]+)+", name) or name.split(".")[0] not in MODULES:
            yield f"test {name}: a name is MODULE.name, with a module of this tree"
    lists = "".join(text(n) for n in tracked() if n.startswith("test/")
                    and n.endswith((".cmake", "CMakeLists.txt")))
    for name in tracked():
        found = re.fullmatch(r"(test/\w+)/test_(\w+)\.py", name)
        if found and pathlib.Path(name).name not in lists and not re.search(
                rf"\b{found[2]}\b", text(f"{found[1]}/CMakeLists.txt")):
            yield f"{name}: no list registers it, so it never runs"
        found = re.fullmatch(r"test/(?:unit|fuzz|chain)/(([a-z0-9]+)_?.*?)_?(test|fuzz)\.(?:c|py)",
                             name)
        if not found or name == "test/chain/conftest.py":
            continue
        stem, module, kind = found.groups()
        rest = ("fuzz_" if kind == "fuzz" else "") + stem[len(module) + 1:]
        if f"{module}.{rest}" not in tests and pathlib.Path(name).name not in lists:
            yield f"{name}: no list registers it, so it never runs"
        if module not in MODULES and not name.startswith("test/chain/"):
            yield f"{name}: does not begin with its module"
    for target in re.search(r"\.PHONY:(.*)", text("Makefile")).group(1).split():
        if not re.search(rf"^{target}:.*## \S", text("Makefile"), re.M):
            yield f"Makefile: target {target} is not described (## ...)"


# -- man pages --

OPTION = re.compile(r"^  (-[\w-]+)(?: ([^ \n]+))?(?:  \[(\w+)\])?\n        (.*)$", re.M)
OPTIONS = "# OPTIONS\n"
# What prints a program's options, where it is not plain --help.
HELP = {"cloud-api-adaptor": [["aws", "--help"], ["local", "--help"]],
        "peerpodctl": [["status", "--help"], ["inspect", "--help"], ["orphans", "--help"],
                       ["run", "--help"]]}
# Pages whose tables are written by `lint.py options`; the others are written by hand.
WRITTEN = ["cloud-api-adaptor", "peerpodctl"]


def man_pages():
    """(page, its program in the build tree) for each page whose program is built."""
    pages = [n for n in tracked() if re.fullmatch(r"docs/man/[\w-]+\.[1-8]\.md", n)]
    pairs = [(page, BUILD / "bin" / pathlib.Path(page).name.split(".")[0]) for page in pages]
    return [(page, program) for page, program in pairs if program.exists()]


def help_of(program):
    said = [subprocess.run([str(program), *words], capture_output=True, text=True, timeout=20)
            for words in HELP.get(program.name, [["--help"]])]
    return "\n".join(one.stdout + one.stderr for one in said)


def option_lines(program):
    """The OPTIONS section of a page from what the program says."""
    out, seen = [], set()
    for part in re.split(r"^(?=\S.*options:$)", help_of(program), flags=re.M):
        found = OPTION.findall(part)
        title = part.split(":")[0]
        if title in seen:  # what all providers have in common
            continue
        seen.add(title)
        if found and title.endswith("options") and not title.startswith(program.name):
            out += [f"## {title[0].upper()}{title[1:]}", ""]
        for flag, kind, variable, says in found:
            kind = f" *{kind}*" if kind and kind != "bool" else ""
            variable = f", **{variable}**" if variable else ""
            out += [f"**{flag}**{kind}{variable}", f": {says}", ""]
    return "\n".join(out)


def write_options():
    for page, program in man_pages():
        if program.name not in WRITTEN:
            continue
        content = text(page)
        head, tail = content.split(OPTIONS, 1)
        rest = re.search(r"^# ", tail, re.M)
        (ROOT / page).write_text(head + OPTIONS + "\n" + option_lines(program)
                                 + ("\n" + tail[rest.start():] if rest else ""))


def check_man():
    pages = man_pages()
    for page, program in pages:
        content = text(page)
        written = set(re.findall(r"(?<![\w-])-{1,2}([a-z][a-z0-9-]*)", content))
        offered = {flag.lstrip("-") for flag, *_ in OPTION.findall(help_of(program))}
        for flag in sorted(offered - written):
            yield f"{page}: does not describe -{flag}, which --help lists (lint.py options)"
        listed = set(re.findall(r"^\*\*-{1,2}([\w-]+)\*\*.*\n: ", content, re.M))
        for flag in sorted(listed - offered):
            yield f"{page}: describes -{flag}, which --help does not list (lint.py options)"
        if not offered:
            yield f"{program.name} --help lists no options"
    for program in sorted((BUILD / "bin").glob("*")):
        if program.name in PROGRAMS and program not in [p for _, p in pages]:
            yield f"docs/man: no page for {program.name}"
    if not pages:
        raise Skip("no programs are built")


CHECKS = {name[len("check_"):]: function for name, function in sorted(globals().items())
          if name.startswith("check_")}


def run(name):
    """0, 1 or SKIP_STATUS for one check, said on stdout."""
    try:
        breaches = list(CHECKS[name]())
    except Skip as skip:
        print(f"lint.{name}: skipped: {skip}")
        return 1 if os.environ.get("STRICT") == "1" else SKIP_STATUS
    for breach in breaches:
        print(breach)
    print(f"lint.{name}: {len(breaches)} breaches" if breaches else f"lint.{name}: kept")
    return 1 if breaches else 0


def main():
    global BUILD
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=BUILD)
    parser.add_argument("checks", nargs="*", choices=[*CHECKS, "list", "options", []])
    args = parser.parse_args()
    BUILD = args.build
    if args.checks == ["list"]:
        write_listing()
        return 0
    if args.checks == ["options"]:
        write_options()
        return 0
    status = [run(name) for name in args.checks or CHECKS]
    if len(status) == 1:
        return status[0]
    return 1 if 1 in status else 0


if __name__ == "__main__":
    sys.exit(main())
