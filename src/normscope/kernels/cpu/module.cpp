// The door from Python. Tensors come in as any other object, and `tensors.h` reads them. One module per instruction
// set.
#include "tensors.h"

#include <chrono>
#include <ctime>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "kernel.h"
#include "rows.h"

namespace {

using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);
Team team = nullptr;
int (*rank)() = nullptr;

#if defined(__linux__)
bool take_from(void* library) {
    team = (Team)dlsym(library, "GOMP_parallel");
    if (team) rank = (int (*)())dlsym(library, "omp_get_thread_num");
    return team != nullptr;
}

int look(struct dl_phdr_info* info, size_t, void*) {
    // Of torch's own thread pool, wherever it was loaded: a second one would fight with it for the cores.
    if (!info->dlpi_name || !(strstr(info->dlpi_name, "gomp") || strstr(info->dlpi_name, "omp5"))) return 0;
    void* library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    return library && take_from(library);
}
#endif

void find_team() {
#if defined(__linux__)
    if (!take_from(RTLD_DEFAULT)) dl_iterate_phdr(look, nullptr);
#endif
}

Hints hints;
PyObject* at_first = nullptr;  // called before the first input of this many bytes, and then forgotten
long first_bytes = 0;

constexpr long LARGE_PAGES_BYTES = 8 << 20;

// One normalization: what its forward found out, for its backward. Made by `plan`, where nothing is in the way.
struct Plan {
    PyObject_HEAD;
    Values x;
    Problem p;
    int act;
    int64_t* seen;
    void* own;        // what the backward needs, (6, C); or null, and
    PyObject* saved;  // the tensor that holds it
    PyObject* held[6];  // what was given, until the forward has run: addresses alone keep nothing alive
};
PyTypeObject* plan_type = nullptr;

void let_go(Plan* plan) {
    for (PyObject*& object : plan->held) Py_CLEAR(object);
}

void plan_dealloc(PyObject* self) {
    Plan* plan = (Plan*)self;
    let_go(plan);
    std::free(plan->own);
    Py_XDECREF(plan->saved);
    PyTypeObject* type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

bool wrong(Py_ssize_t count, Py_ssize_t wanted) {
    if (count == wanted) return false;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, count);
    return true;
}

PyObject* unfit(const char* what) {
    PyErr_Format(PyExc_ValueError, "%s does not fit the plan", what);
    return nullptr;
}

// Whether memory ran out.
template <class F>
bool fails(const Problem& p, F&& work) {
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
    if (failed) PyErr_NoMemory();
    return failed;
}

void lay_out(Problem& p, const Values& v) {
    p.samples = v.samples;
    p.channels = v.channels;
    p.positions = v.positions;
    p.last = v.last;
    p.team = team;
    p.rank = rank;
}

long bytes_of(const Values& x) {
    return (x.type == DOUBLE ? 8 : x.type == FLOAT ? 4 : 2) * x.samples * x.channels * x.positions;
}

// What is to happen before the first large input; whatever comes of it, the input is computed.
void see_first(const Values& x) {
    if (!at_first || bytes_of(x) < first_bytes) return;
    PyObject *type, *value, *trace, *call = at_first;
    at_first = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    PyObject* said = PyObject_CallNoArgs(call);
    if (!said) PyErr_Clear();
    Py_XDECREF(said);
    Py_DECREF(call);
    PyErr_Restore(type, value, trace);
}

// x, weight, bias, running mean, running variance, count of batches: all tensors, all but the first may be None. None
// where the kernel cannot take one of them.
PyObject* plan(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (wrong(count, 6)) return nullptr;
    if (!torch_.tensor) {
        PyErr_SetString(PyExc_RuntimeError, "call learn first");
        return nullptr;
    }
    Values x;
    Problem p;
    int64_t* seen;
    if (!read_values(args[0], x) || !read_row(args[1], x.channels, p.weight) || !read_row(args[2], x.channels, p.bias) ||
        !read_row(args[3], x.channels, p.running_mean) || !read_row(args[4], x.channels, p.running_var) ||
        !read_count(args[5], seen) || (args[3] == Py_None) != (args[4] == Py_None))
        Py_RETURN_NONE;
    see_first(x);
    Plan* made = (Plan*)PyType_GenericAlloc(plan_type, 0);
    if (!made) return nullptr;
    p.x = x.data;
    lay_out(p, x);
    made->x = x;
    made->p = p;
    made->seen = seen;
    for (int i = 0; i < 6; i++) made->held[i] = Py_NewRef(args[i]);
    return (PyObject*)made;
}

// Memory like that of a tensor which was read: dense and in the order of its axes, so that only the address is asked for.
PyObject* empty_like(PyObject* x, void*& data) {
    PyObject* made = PyObject_CallFunctionObjArgs(torch_.empty_like, x, nullptr);
    if (made && !address_of(made, data)) {
        Py_CLEAR(made);
        PyErr_SetString(PyExc_RuntimeError, "torch.empty_like gave no memory");
    }
    return made;
}

// Whether the system has handed out the pages of an output yet: told by the page in its middle.
bool has_pages(const void* data, long bytes) {
#if defined(__linux__)
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = ((uintptr_t)data + bytes / 2) & ~(page - 1);
    unsigned char there = 0;
    return mincore((void*)at, page, &there) == 0 && (there & 1);
#else
    return (void)data, (void)bytes, false;
#endif
}

// Hints as they are now. Large fresh memory in pages of 2 MB where the system has them for the asking: to be handed 4 KB at
// a time costs more than the work does. That is a hint about memory that will be written whole at once; it goes when the
// memory goes back to the system.
void go_about(Problem& p, const Values& x) {
    const long all = bytes_of(x);
    p.hints = hints;
    p.fresh = p.out && all >= LARGE_PAGES_BYTES && !has_pages(p.out, all);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = 2 << 20;
    if (!p.fresh || !p.hints.large_pages) return;
    const uintptr_t from = ((uintptr_t)p.out + PAGE - 1) & ~(PAGE - 1), to = ((uintptr_t)p.out + all) & ~(PAGE - 1);
    if (to > from) madvise((void*)from, to - from, MADV_HUGEPAGE);
#endif
}

// x again, whether the output goes over it, what the backward needs as a tensor (6, C) or None, threads, activation,
// slope, eps, share. Returns the output.
PyObject* plan_forward(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (wrong(count, 8)) return nullptr;
    Plan* plan = (Plan*)self;
    Problem& p = plan->p;
    const int type = plan->x.type;
    void* at;
    Values saved;
    if (plan->own || plan->saved) return unfit("a second forward");
    if (!address_of(args[0], at) || at != plan->x.data) return unfit("the input");
    if (args[2] != Py_None && !(read_values(args[2], saved) && saved.type == (type == DOUBLE ? DOUBLE : FLOAT) &&
                                saved.samples == 6 && saved.channels == p.channels && saved.positions == 1))
        return unfit("what is saved");
    p.threads = (int)PyLong_AsLong(args[3]);
    plan->act = (int)PyLong_AsLong(args[4]);
    p.slope = PyFloat_AsDouble(args[5]);
    p.eps = PyFloat_AsDouble(args[6]);
    p.share = PyFloat_AsDouble(args[7]);
    if (PyErr_Occurred()) return nullptr;
    PyObject* y = args[1] == Py_True ? Py_NewRef(args[0]) : empty_like(args[0], p.out);
    if (!y) return nullptr;
    if (y == args[0]) p.out = at;
    go_about(p, plan->x);
    if (args[2] == Py_None) {
        p.saved = plan->own = std::malloc(6 * p.channels * (type == DOUBLE ? sizeof(double) : sizeof(float)));
        if (!plan->own) return Py_DECREF(y), PyErr_NoMemory();
    } else {
        p.saved = saved.data;
        plan->saved = Py_NewRef(args[2]);
    }
    if (fails(p, [&] { run_forward(p, type, plan->act); })) return Py_DECREF(y), nullptr;
    if (plan->seen) ++*plan->seen;
    let_go(plan);
    return y;
}

// g, x (or the output), weight, bias, three truths: which gradients are wanted, whether that of x may go over g, threads,
// whether x is the output. Returns a tuple of three; None where g, or x as it is now, cannot be taken.
PyObject* plan_backward(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (wrong(count, 10)) return nullptr;
    Plan* plan = (Plan*)self;
    if (!plan->own && !plan->saved) return unfit("a backward before the forward");
    Values x, g;
    if (!read_values(args[1], x) || !read_values(args[0], g) || !g.fits(x)) Py_RETURN_NONE;
    const bool last = x.last;  // what was saved is the same in both layouts
    x.last = plan->x.last;
    if (!x.fits(plan->x)) Py_RETURN_NONE;
    x.last = last;
    Problem p;
    lay_out(p, x);
    if (!read_row(args[2], x.channels, p.weight) || !read_row(args[3], x.channels, p.bias)) Py_RETURN_NONE;
    p.saved = plan->p.saved;
    p.slope = plan->p.slope;
    p.x = x.data;
    p.g = g.data;
    p.threads = (int)PyLong_AsLong(args[8]);
    const int over = PyObject_IsTrue(args[7]), from_output = PyObject_IsTrue(args[9]);
    if (PyErr_Occurred()) return nullptr;
    PyObject* found = PyTuple_New(3);
    if (!found) return nullptr;
    void** into[] = {&p.out, &p.g_weight.data, &p.g_bias.data};
    for (int i = 0; i < 3; i++) {
        PyObject* of = args[i + 1];
        if (args[4 + i] != Py_True || of == Py_None) {
            PyTuple_SetItem(found, i, Py_NewRef(Py_None));
            continue;
        }
        PyObject* made = i == 0 && over ? Py_NewRef(args[0]) : empty_like(of, *into[i]);
        if (!made) return Py_DECREF(found), nullptr;
        if (made == args[0]) p.out = g.data;
        PyTuple_SetItem(found, i, made);
    }
    go_about(p, x);
    p.g_weight.type = p.weight.type;
    p.g_bias.type = p.bias.type;
    if (fails(p, [&] { run_backward(p, x.type, plan->act, from_output != 0); })) return Py_DECREF(found), nullptr;
    return found;
}

PyMethodDef plan_methods[] = {
    {"forward", (PyCFunction)(void (*)(void))plan_forward, METH_FASTCALL, "Normalize, activate, track; once."},
    {"backward", (PyCFunction)(void (*)(void))plan_backward, METH_FASTCALL, "Gradients; None where it cannot."},
    {nullptr, nullptr, 0, nullptr},
};
PyObject* plan_count(PyObject* self, void*) {
    const Values& x = ((Plan*)self)->x;
    return PyLong_FromLong(x.samples * x.positions);
}

PyGetSetDef plan_members[] = {
    {"count", plan_count, nullptr, "Values a channel.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyType_Slot plan_slots[] = {
    {Py_tp_getset, plan_members},
    {Py_tp_dealloc, (void*)plan_dealloc},
    {Py_tp_methods, plan_methods},
    {0, nullptr},
};
PyType_Spec plan_spec = {"normscope.kernels.cpu.Plan", sizeof(Plan), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, plan_slots};

// torch's Tensor, Parameter, strided, empty_like, float32, bfloat16, float64, int64; and DLPack's exchange, or None.
PyObject* learn(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (wrong(count, 9)) return nullptr;
    const Exchange* exchange = nullptr;
    if (args[8] != Py_None) {
        exchange = (const Exchange*)PyCapsule_GetPointer(args[8], "dlpack_exchange_api");
        if (!exchange) return nullptr;
        while (exchange && exchange->major != 1) exchange = exchange->before;
    }
    torch_.look = exchange ? exchange->look : nullptr;
    PyObject** into[] = {&torch_.tensor,   &torch_.parameter, &torch_.strided,  &torch_.empty_like,
                         &torch_.types[0], &torch_.types[1],  &torch_.types[2], &torch_.int64};
    for (int i = 0; i < 8; i++) {
        PyObject* before = *into[i];
        *into[i] = Py_NewRef(args[i]);
        Py_XDECREF(before);
    }
    Py_RETURN_NONE;
}

// A tensor of a type: its address. None leaves null.
bool read_memory(PyObject* x, int type, void*& data) {
    return x == Py_None || (is_plain(x) && type_of(x) == type && address_of(x, data));
}

// A parameter, or where its gradient goes: of any of the types; None leaves null.
bool read_gains(PyObject* x, PerChannel& row) {
    return x == Py_None || (is_plain(x) && (row.type = type_of(x)) >= 0 && address_of(x, row.data));
}

// x, rows, values of a row, groups, values that share a gain, whether the mean is taken off, eps, threads: all that both
// passes are given. The caller answers for sizes; tensors are dense.
bool read_rows(PyObject* const* args, RowProblem& p, Values& x) {
    x.samples = p.samples = 1;
    x.channels = p.channels = PyLong_AsLong(args[1]);
    x.positions = p.positions = PyLong_AsLong(args[2]);
    p.groups = PyLong_AsLong(args[3]);
    p.span = PyLong_AsLong(args[4]);
    p.centred = args[5] == Py_True;
    p.eps = PyFloat_AsDouble(args[6]);
    p.threads = (int)PyLong_AsLong(args[7]);
    p.team = team;
    p.rank = rank;
    if (PyErr_Occurred()) return false;
    if (p.channels < 1 || p.positions < 1 || p.groups < 1 || p.span < 1 || p.positions % p.span) return unfit("a size"), false;
    if (!is_plain(args[0]) || (x.type = type_of(args[0])) < 0 || !address_of(args[0], x.data)) return unfit("the input"), false;
    p.x = x.data;
    return true;
}

// The eight of `read_rows`; then y, what is saved (6, rows), gain, shift.
PyObject* rows_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (wrong(count, 12)) return nullptr;
    RowProblem p;
    Values x;
    if (!read_rows(args, p, x)) return nullptr;
    const int kept = x.type == DOUBLE ? DOUBLE : FLOAT;
    if (!read_memory(args[8], x.type, p.out) || !read_memory(args[9], kept, p.saved) || !read_gains(args[10], p.gain) ||
        !read_gains(args[11], p.shift) || !p.out || !p.saved)
        return unfit("a tensor");
    see_first(x);
    go_about(p, x);
    if (fails(p, [&] { run_rows_forward(p, x.type); })) return nullptr;
    Py_RETURN_NONE;
}

// The eight of `read_rows`; then the cotangent of y, where that of x goes or None, what is saved, the gain, and where the
// cotangents of gain and shift go or None.
PyObject* rows_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (wrong(count, 14)) return nullptr;
    RowProblem p;
    Values x;
    void* g = nullptr;
    if (!read_rows(args, p, x)) return nullptr;
    const int kept = x.type == DOUBLE ? DOUBLE : FLOAT;
    if (!read_memory(args[8], x.type, g) || !read_memory(args[9], x.type, p.out) || !read_memory(args[10], kept, p.saved) ||
        !read_gains(args[11], p.gain) || !read_gains(args[12], p.g_gain) || !read_gains(args[13], p.g_shift) || !g || !p.saved)
        return unfit("a tensor");
    p.g = g;
    go_about(p, x);
    if (fails(p, [&] { run_rows_backward(p, x.type); })) return nullptr;
    Py_RETURN_NONE;
}

PyObject* about(PyObject*, PyObject*) {
    return Py_BuildValue("{s:s,s:O,s:l}", "isa", NORMSCOPE_ISA, "threads", team ? Py_True : Py_False, "cache", hints.own);
}

// How memory is gone about, in the order of `Hints`.
constexpr int HINTS = 9;
bool read_hints(PyObject* const* args, Hints& h) {
    long* const sizes[] = {&h.own, &h.shared, &h.stretch, &h.ahead, &h.stream};
    bool* const truths[] = {&h.stream_fresh, &h.next, &h.pairs, &h.large_pages};
    for (int i = 0; i < HINTS; i++) {
        if (i < 5) *sizes[i] = PyLong_AsLong(args[i]);
        else *truths[i - 5] = args[i] == Py_True;
    }
    if (h.own < 4096) PyErr_SetString(PyExc_ValueError, "no cache is so small");
    return !PyErr_Occurred();
}

PyObject* set_hints(PyObject*, PyObject* const* args, Py_ssize_t count) {
    Hints h;
    if (wrong(count, HINTS) || !read_hints(args, h)) return nullptr;
    hints = h;
    Py_RETURN_NONE;
}

PyObject* get_hints(PyObject*, PyObject*) {
    const Hints& h = hints;
    auto truth = [](bool value) { return value ? Py_True : Py_False; };
    return Py_BuildValue("(lllllOOOO)", h.own, h.shared, h.stretch, h.ahead, h.stream, truth(h.stream_fresh), truth(h.next),
                         truth(h.pairs), truth(h.large_pages));
}

// A function without arguments, and from how many bytes on an input is large; None for nothing.
PyObject* before_first_large(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (wrong(count, 2)) return nullptr;
    const long bytes = PyLong_AsLong(args[1]);
    if (PyErr_Occurred()) return nullptr;
    PyObject* before = at_first;
    at_first = args[0] == Py_None ? nullptr : Py_NewRef(args[0]);
    first_bytes = bytes;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

// Seconds that a forward or a backward takes on one thread, by hints: addresses of the input, the cotangent or 0 for a
// forward, the output, and 6 float32 a channel, which a forward fills in; samples, channels, positions, whether channels
// lie side by side; then the hints. For memory that the caller owns.
PyObject* time_pass(PyObject*, PyObject* const* args, Py_ssize_t count) {
    Problem p;
    if (wrong(count, 8 + HINTS) || !read_hints(args + 8, p.hints)) return nullptr;
    p.x = PyLong_AsVoidPtr(args[0]);
    p.g = PyLong_AsVoidPtr(args[1]);
    p.out = PyLong_AsVoidPtr(args[2]);
    p.saved = PyLong_AsVoidPtr(args[3]);
    p.samples = PyLong_AsLong(args[4]);
    p.channels = PyLong_AsLong(args[5]);
    p.positions = PyLong_AsLong(args[6]);
    p.last = args[7] == Py_True;
    p.eps = 1e-5;
    p.fresh = false;
    if (PyErr_Occurred()) return nullptr;
    // The thread's own time, where there is a clock of it: others that use the processor are not to be counted.
#if defined(CLOCK_THREAD_CPUTIME_ID)
    auto now = [] {
        timespec t;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
    };
#else
    auto now = [] { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); };
#endif
    const double start = now();
    if (fails(p, [&] { p.g ? run_backward(p, FLOAT, RELU, false) : run_forward(p, FLOAT, RELU); })) return nullptr;
    return PyFloat_FromDouble(now() - start);
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
    {"learn", (PyCFunction)(void (*)(void))learn, METH_FASTCALL, "Take the objects of torch that tensors are told by."},
    {"plan", (PyCFunction)(void (*)(void))plan, METH_FASTCALL, "A plan of one normalization; None where it cannot be."},
    {"rows_forward", (PyCFunction)(void (*)(void))rows_forward, METH_FASTCALL, "Normalize rows."},
    {"rows_backward", (PyCFunction)(void (*)(void))rows_backward, METH_FASTCALL, "Gradients of rows."},
    {"set_hints", (PyCFunction)(void (*)(void))set_hints, METH_FASTCALL, "Set how memory is gone about."},
    {"hints", get_hints, METH_NOARGS, "How memory is gone about."},
    {"before_first_large", (PyCFunction)(void (*)(void))before_first_large, METH_FASTCALL, "Call once, before it."},
    {"time_pass", (PyCFunction)(void (*)(void))time_pass, METH_FASTCALL, "Seconds of a forward or backward by hints."},
    {"about", about, METH_NOARGS, "Instruction set, whether torch's threads were found, bytes of the cache."},
    {"supports", supports, METH_NOARGS, "Which builds this machine can run."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "batch norm", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

#define GLUE(a, b) a##b
#define INIT(name) GLUE(PyInit_, name)
PyMODINIT_FUNC INIT(NORMSCOPE_MODULE)() {
    find_team();
    if (!torch_.name() || !(plan_type = (PyTypeObject*)PyType_FromSpec(&plan_spec))) return nullptr;
    return PyModule_Create(&definition);
}
