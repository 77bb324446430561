"""Python, a compiler that works, and the verbs libraries."""


def test_python_version(plan, host, check):
    program = "import sys; print(*sys.version_info[:2], sep='.')"
    seen = host.check_output("python3 -c %s", program)
    check("python3", seen=seen, expected=plan["python"] or seen)


def test_compiler_builds_an_extension(host, check):
    program = (
        "d=$(mktemp -d); echo '#include <Python.h>' >$d/a.c; "
        "echo 'int a(void){return 0;}' >>$d/a.c; "
        "gcc -shared -fPIC $(python3-config --includes) -o $d/a.so $d/a.c && echo built; rm -rf $d"
    )
    check("gcc with Python.h", seen=host.run(program).stdout.strip(), expected="built")


def test_verbs_library_loads(host, check):
    seen = host.run("python3 -c 'import ctypes; ctypes.CDLL(\"libibverbs.so.1\"); print(1)'")
    check("libibverbs.so.1 loads", seen=seen.stdout.strip(), expected="1")


def test_no_bytecode_in_any_layer(files, check):
    left = files.every(r"\.pyc$")
    check("bytecode in any layer", seen=[str(one) for one in left][:20], expected=[])
