// What the kernel needs to know of a tensor, read off the attributes that Python sees: nothing of torch's headers, and
// a fraction of the time that the same questions cost in Python. Whatever is in the way answers no, and leaves no error.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "problem.h"

// Objects of torch that tensors are held against, given once by `learn`; and the names of what is asked.
struct Torch {
    PyObject *tensor = nullptr, *parameter = nullptr, *strided = nullptr, *empty_like = nullptr, *types[3] = {}, *int64 = nullptr;
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

// A tensor on the CPU whose memory may be touched: not a subclass, whose operations are its own.
inline bool is_plain(PyObject* x) {
    PyObject* type = (PyObject*)Py_TYPE(x);
    return (type == torch_.tensor || type == torch_.parameter) && is(x, torch_.is_cpu, Py_True);
}

inline int type_of(PyObject* x) {
    Held dtype(PyObject_GetAttr(x, torch_.dtype));
    for (int i = 0; i < 3; i++)
        if (dtype.get() == torch_.types[i]) return i;
    return -1;
}

inline bool address_of(PyObject* x, void*& found) {
    Held address(call(x, torch_.data_ptr));
    if (!address.get()) return false;
    found = PyLong_AsVoidPtr(address.get());
    if (found || !PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
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

constexpr Py_ssize_t MOST_AXES = 16;

// Read `(N, C, *)`: dense, with the channels apart or side by side.
inline bool read_values(PyObject* x, Values& v) {
    if (!is_plain(x) || (v.type = type_of(x)) < 0 || !is(x, torch_.layout, torch_.strided) ||
        !answers(x, torch_.is_neg, Py_False))
        return false;
    Held shape(PyObject_GetAttr(x, torch_.shape)), stride(call(x, torch_.stride));
    if (!shape.get() || !stride.get() || !PyTuple_Check(shape.get()) || !PyTuple_Check(stride.get())) return false;
    const Py_ssize_t axes = PyTuple_Size(shape.get());
    if (axes < 2 || axes > MOST_AXES || PyTuple_Size(stride.get()) != axes) return false;
    long size[MOST_AXES], step[MOST_AXES], apart = 1, side_by_side;
    for (Py_ssize_t i = 0; i < axes; i++) {
        size[i] = PyLong_AsLong(PyTuple_GetItem(shape.get(), i));
        step[i] = PyLong_AsLong(PyTuple_GetItem(stride.get(), i));
        if (size[i] <= 0) {  // nothing to take statistics of, or no number
            PyErr_Clear();
            return false;
        }
    }
    v.samples = size[0];
    v.channels = size[1];
    // The steps that each layout has; those of axes of one element say nothing.
    bool is_apart = true, is_last = size[1] == 1 || step[1] == 1;
    side_by_side = size[1];
    v.positions = 1;
    for (Py_ssize_t i = axes - 1; i >= 0; i--) {
        is_apart = is_apart && (size[i] == 1 || step[i] == apart);
        apart *= size[i];
        if (i == 1) continue;
        is_last = is_last && (size[i] == 1 || step[i] == side_by_side);
        side_by_side *= size[i];
        if (i > 1) v.positions *= size[i];
    }
    v.last = is_apart ? v.positions == 1 : is_last;
    return (is_apart || is_last) && address_of(x, v.data);
}

// Read a dense row `(C,)`, or None. By addresses a row of another length would be read past its end.
inline bool read_row(PyObject* x, long channels, PerChannel& row) {
    if (x == Py_None) return true;
    if (!is_plain(x) || (row.type = type_of(x)) < 0) return false;
    Held shape(PyObject_GetAttr(x, torch_.shape)), stride(call(x, torch_.stride));
    if (!shape.get() || !stride.get() || PyTuple_Size(shape.get()) != 1 || PyTuple_Size(stride.get()) != 1)
        return false;
    if (PyLong_AsLong(PyTuple_GetItem(shape.get(), 0)) != channels) return false;
    if (channels > 1 && PyLong_AsLong(PyTuple_GetItem(stride.get(), 0)) != 1) return false;
    return address_of(x, row.data);
}

// Read a count `()`, int64, or None.
inline bool read_count(PyObject* x, int64_t*& count) {
    count = nullptr;
    if (x == Py_None) return true;
    if (!is_plain(x) || !is(x, torch_.dtype, torch_.int64)) return false;
    Held shape(PyObject_GetAttr(x, torch_.shape));
    void* found;
    if (!shape.get() || PyTuple_Size(shape.get()) != 0 || !address_of(x, found)) return false;
    count = (int64_t*)found;
    return true;
}
