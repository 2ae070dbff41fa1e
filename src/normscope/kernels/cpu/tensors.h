// What the kernel needs to know of a tensor: nothing of torch's headers, and a fraction of the time that the same questions
// cost in Python. DLPack's exchange of C functions answers most of them at once, where torch has it; else the attributes
// that Python sees do. Whatever is in the way answers no, and leaves no error.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "problem.h"

// The part of DLPack 1.3 that is asked: a tensor as it lies in memory, borrowed while the object lives and is not changed.
struct Lying {
    void* data;
    int32_t device, number;
    int32_t axes;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
};
struct Exchange {
    uint32_t major, minor;
    const Exchange* before;
    void (*unused[3])();
    int (*look)(void* object, Lying* found);
};
constexpr int32_t ON_CPU = 1;
constexpr uint8_t WHOLE = 0, FLOATING = 2, BRAIN = 4;

// Objects of torch that tensors are held against, given once by `learn`; and the names of what is asked.
struct Torch {
    PyObject *tensor = nullptr, *parameter = nullptr, *strided = nullptr, *empty_like = nullptr, *types[3] = {}, *int64 = nullptr;
    int (*look)(void*, Lying*) = nullptr;  // null where torch offers no exchange
    PyObject *shape, *stride, *dtype, *is_cpu, *layout, *is_neg, *data_ptr;

    bool name() {
        struct {
            PyObject** at;
            const char* text;
        } names[] = {{&shape, "shape"},   {&stride, "stride"}, {&dtype, "dtype"},      {&is_cpu, "is_cpu"},
                     {&layout, "layout"}, {&is_neg, "is_neg"}, {&data_ptr, "data_ptr"}};
        for (auto& n : names)
            if (!(*n.at = PyUnicode_InternFromString(n.text))) return false;
        return true;
    }
};
inline Torch torch_;

// A reference that lets go by itself.
class Held {
    PyObject* p;

   public:
    explicit Held(PyObject* object) : p(object) {
        if (!p) PyErr_Clear();
    }
    ~Held() { Py_XDECREF(p); }
    Held(const Held&) = delete;
    PyObject* get() const { return p; }
};

inline PyObject* call(PyObject* x, PyObject* method) { return PyObject_CallMethodObjArgs(x, method, nullptr); }

inline bool is(PyObject* x, PyObject* attribute, PyObject* expected) {
    return Held(PyObject_GetAttr(x, attribute)).get() == expected;
}

inline bool answers(PyObject* x, PyObject* method, PyObject* expected) {
    return Held(call(x, method)).get() == expected;
}

// Not a subclass, whose operations are its own.
inline bool is_tensor(PyObject* x) {
    PyObject* type = (PyObject*)Py_TYPE(x);
    return type == torch_.tensor || type == torch_.parameter;
}

// A tensor on the CPU whose memory may be touched.
inline bool is_plain(PyObject* x) { return is_tensor(x) && is(x, torch_.is_cpu, Py_True); }

inline int type_of(PyObject* x) {
    Held dtype(PyObject_GetAttr(x, torch_.dtype));
    for (int i = 0; i < 3; i++)
        if (dtype.get() == torch_.types[i]) return i;
    return -1;
}

inline bool look_at(PyObject* x, Lying& found) {
    if (!torch_.look(x, &found)) return true;
    PyErr_Clear();  // no memory, or no tensor
    return false;
}

inline bool address_of(PyObject* x, void*& found) {
    if (torch_.look) {
        Lying t;
        if (!look_at(x, t)) return false;
        found = (char*)t.data + t.offset;
        return true;
    }
    Held address(call(x, torch_.data_ptr));
    if (!address.get()) return false;
    found = PyLong_AsVoidPtr(address.get());
    if (found || !PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
}

constexpr int MOST_AXES = 16;
constexpr int INT64 = 3;  // beside the types of values

// A strided tensor on the CPU: its type, or -1 for another; where it begins; its axes.
struct Strided {
    void* data = nullptr;
    int type = -1, axes = 0;
    long size[MOST_AXES], step[MOST_AXES];
};

inline bool read_by_exchange(PyObject* x, Strided& s) {
    Lying t;
    if (!look_at(x, t) || t.device != ON_CPU || t.lanes != 1 || t.axes > MOST_AXES) return false;
    if (t.code == FLOATING && t.bits == 32) s.type = FLOAT;
    if (t.code == BRAIN && t.bits == 16) s.type = BFLOAT16;
    if (t.code == FLOATING && t.bits == 64) s.type = DOUBLE;
    if (t.code == WHOLE && t.bits == 64) s.type = INT64;
    s.axes = t.axes;
    for (int i = 0; i < s.axes; i++) s.size[i] = (long)t.shape[i], s.step[i] = (long)t.strides[i];
    s.data = (char*)t.data + t.offset;
    return true;
}

inline bool read_by_attributes(PyObject* x, Strided& s) {
    if (!is(x, torch_.is_cpu, Py_True) || !is(x, torch_.layout, torch_.strided)) return false;
    s.type = is(x, torch_.dtype, torch_.int64) ? INT64 : type_of(x);
    Held shape(PyObject_GetAttr(x, torch_.shape)), stride(call(x, torch_.stride));
    if (!shape.get() || !stride.get() || !PyTuple_Check(shape.get()) || !PyTuple_Check(stride.get())) return false;
    const Py_ssize_t axes = PyTuple_Size(shape.get());
    if (axes > MOST_AXES || PyTuple_Size(stride.get()) != axes) return false;
    s.axes = (int)axes;
    for (int i = 0; i < s.axes; i++) {
        s.size[i] = PyLong_AsLong(PyTuple_GetItem(shape.get(), i));
        s.step[i] = PyLong_AsLong(PyTuple_GetItem(stride.get(), i));
    }
    if (PyErr_Occurred()) {  // no numbers
        PyErr_Clear();
        return false;
    }
    return address_of(x, s.data);
}

inline bool read_strided(PyObject* x, Strided& s) {
    return is_tensor(x) && (torch_.look ? read_by_exchange(x, s) : read_by_attributes(x, s));
}

// A whole tensor: its type, where it begins, and how its channels lie.
struct Values {
    void* data = nullptr;
    int type = -1;
    long samples = 0, channels = 0, positions = 1;
    bool last = false;  // channels side by side in memory

    bool fits(const Values& other) const {
        return type == other.type && samples == other.samples && channels == other.channels &&
               positions == other.positions && last == other.last;
    }
};

// Read `(N, C, *)`: dense, with the channels apart or side by side, and no sign still to be changed.
inline bool read_values(PyObject* x, Values& v) {
    Strided s;
    if (!read_strided(x, s) || s.type < 0 || s.type == INT64 || s.axes < 2) return false;
    for (int i = 0; i < s.axes; i++)
        if (s.size[i] <= 0) return false;  // nothing to take statistics of
    if (!s.data || !answers(x, torch_.is_neg, Py_False)) return false;
    v.data = s.data;
    v.type = s.type;
    v.samples = s.size[0];
    v.channels = s.size[1];
    // The steps that each layout has; those of axes of one element say nothing.
    bool is_apart = true, is_last = s.size[1] == 1 || s.step[1] == 1;
    long apart = 1, side_by_side = s.size[1];
    v.positions = 1;
    for (int i = s.axes - 1; i >= 0; i--) {
        is_apart = is_apart && (s.size[i] == 1 || s.step[i] == apart);
        apart *= s.size[i];
        if (i == 1) continue;
        is_last = is_last && (s.size[i] == 1 || s.step[i] == side_by_side);
        side_by_side *= s.size[i];
        if (i > 1) v.positions *= s.size[i];
    }
    v.last = is_apart ? v.positions == 1 : is_last;
    return is_apart || is_last;
}

// Read a dense row `(C,)`, or None. By addresses a row of another length would be read past its end.
inline bool read_row(PyObject* x, long channels, PerChannel& row) {
    if (x == Py_None) return true;
    Strided s;
    if (!read_strided(x, s) || s.type < 0 || s.type == INT64 || s.axes != 1) return false;
    if (s.size[0] != channels || (channels > 1 && s.step[0] != 1)) return false;
    row.type = s.type;
    row.data = s.data;
    return true;
}

// Read a count `()`, int64, or None.
inline bool read_count(PyObject* x, int64_t*& count) {
    count = nullptr;
    if (x == Py_None) return true;
    Strided s;
    if (!read_strided(x, s) || s.type != INT64 || s.axes != 0) return false;
    count = (int64_t*)s.data;
    return true;
}
