// The door from Python: plain numbers in (addresses, sizes), nothing of torch. One module per instruction set.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "kernel.h"

namespace {

using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);
Team team = nullptr;

#if defined(__linux__)
int look(struct dl_phdr_info* info, size_t, void* found) {
    // Of torch's own thread pool, wherever it was loaded: a second one would fight with it for the cores.
    if (!info->dlpi_name || !(strstr(info->dlpi_name, "gomp") || strstr(info->dlpi_name, "omp5"))) return 0;
    void* library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return 0;
    *(void**)found = dlsym(library, "GOMP_parallel");
    return *(void**)found != nullptr;
}
#endif

void find_team() {
#if defined(__linux__)
    team = (Team)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (!team) dl_iterate_phdr(look, &team);
#endif
}

bool recycled = false;

// Arguments are taken in order; the first that is no number leaves an error set.
struct Arguments {
    PyObject* const* at;
    void* address() { return PyLong_AsVoidPtr(*at++); }
    long integer() { return PyLong_AsLong(*at++); }
    double number() { return PyFloat_AsDouble(*at++); }
    PerChannel row() {
        PerChannel found;
        found.data = address();
        found.type = (int)integer();
        return found;
    }
};

bool wrong(Py_ssize_t count, Py_ssize_t wanted) {
    if (count == wanted) return false;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, count);
    return true;
}

template <class F>
PyObject* released(const Problem& p, F&& work) {
    bool failed = false;
    if (p.samples * p.channels * p.positions < 65536) {  // letting go of the interpreter costs more than it gives
        try {
            work();
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    } else {
        Py_BEGIN_ALLOW_THREADS;
        try {
            work();
        } catch (const std::bad_alloc&) {
            failed = true;
        }
        Py_END_ALLOW_THREADS;
    }
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

Problem shape_of(Arguments& a) {
    Problem p;
    p.samples = a.integer();
    p.channels = a.integer();
    p.positions = a.integer();
    p.last = a.integer() != 0;
    p.threads = (int)a.integer();
    p.recycled = recycled;
    p.team = team;
    return p;
}

// samples, channels, positions, last, threads, type, activation, slope, eps, share, x, y, saved, then (address, type) of
// weight, bias, running mean and running variance, then the address of the count of batches
PyObject* forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (wrong(count, 22)) return nullptr;
    Arguments a{args};
    Problem p = shape_of(a);
    const int type = (int)a.integer(), act = (int)a.integer();
    p.slope = a.number();
    p.eps = a.number();
    p.share = a.number();
    p.x = a.address();
    p.out = a.address();
    p.saved = a.address();
    p.weight = a.row();
    p.bias = a.row();
    p.running_mean = a.row();
    p.running_var = a.row();
    int64_t* seen = (int64_t*)a.address();
    if (PyErr_Occurred()) return nullptr;
    return released(p, [&] {
        run_forward(p, type, act);
        if (seen) ++*seen;
    });
}

// samples, channels, positions, last, threads, type, activation, from_output, slope, g, x (or the output), gradient of x
// (0: not wanted), saved, then (address, type) of weight, bias and of their gradients
PyObject* backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (wrong(count, 21)) return nullptr;
    Arguments a{args};
    Problem p = shape_of(a);
    const int type = (int)a.integer(), act = (int)a.integer();
    const bool from_output = a.integer() != 0;
    p.slope = a.number();
    p.g = a.address();
    p.x = a.address();
    p.out = a.address();
    p.saved = a.address();
    p.weight = a.row();
    p.bias = a.row();
    p.g_weight = a.row();
    p.g_bias = a.row();
    if (PyErr_Occurred()) return nullptr;
    return released(p, [&] { run_backward(p, type, act, from_output); });
}

PyObject* about(PyObject*, PyObject*) {
    return Py_BuildValue("{s:s,s:O,s:l}", "isa", NORMSCOPE_ISA, "threads", team ? Py_True : Py_False, "cache",
                         half_of_cache() * 2);
}

PyObject* expect_recycled(PyObject*, PyObject* value) {
    const int truth = PyObject_IsTrue(value);
    if (truth < 0) return nullptr;
    recycled = truth != 0;
    Py_RETURN_NONE;
}

// Which of the instruction sets that modules are built for this machine has.
PyObject* supports(PyObject*, PyObject*) {
    int avx512 = 0, avx2 = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return Py_BuildValue("{s:O,s:O}", "_avx512", avx512 ? Py_True : Py_False, "_avx2", avx2 ? Py_True : Py_False);
}

PyMethodDef methods[] = {
    {"forward", (PyCFunction)(void (*)(void))forward, METH_FASTCALL, "Normalize, activate, track; see _call.py."},
    {"backward", (PyCFunction)(void (*)(void))backward, METH_FASTCALL, "Gradients; see _call.py."},
    {"expect_recycled", expect_recycled, METH_O, "Whether freed memory stays in the process."},
    {"about", about, METH_NOARGS, "Instruction set, whether torch's threads were found, bytes of the cache."},
    {"supports", supports, METH_NOARGS, "Which builds this machine can run."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "batch norm", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

// Half of a core's own cache, in bytes: what two passes over a block may take.
long half_of_cache() {
    static const long half = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
        const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
        if (size >= 128 * 1024 && size <= 16 * 1024 * 1024) return size / 2;
#endif
        return 256L * 1024;
    }();
    return half;
}

#define GLUE(a, b) a##b
#define INIT(name) GLUE(PyInit_, name)
PyMODINIT_FUNC INIT(NORMSCOPE_MODULE)() {
    find_team();
    return PyModule_Create(&definition);
}
