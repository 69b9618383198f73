/* The face of the fast path towards Python: arguments in, results out. `_fast.pyi` has the types, `fast.py` uses it.
 *
 * Python's global lock is held: no lock of ours is held for longer than some look-ups.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "_fast.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define NAMES "O&O&O&O&"

static void *in(PyObject *capsule, const char *kind)
{
    return PyCapsule_GetPointer(capsule, kind);
}

/* Converters of PyArg_ParseTuple. */
static int to_desk(PyObject *capsule, void *into)
{
    return (*(struct desk **)into = in(capsule, "aipass.desk")) != NULL;
}

static int to_run(PyObject *capsule, void *into)
{
    return (*(struct run **)into = in(capsule, "aipass.run")) != NULL;
}

/* A list of bytes, each with its NUL, then an empty one; to be freed. */
static int to_names(PyObject *list, void *into)
{
    char *text = calloc(1, 1);
    size_t length = 0;
    Py_ssize_t count = PySequence_Size(list);
    for (Py_ssize_t i = 0; text && i < count; i++) {
        PyObject *item = PySequence_GetItem(list, i);
        char *bytes, *more = NULL;
        if (item && !PyBytes_AsStringAndSize(item, &bytes, NULL) && (more = realloc(text, length + strlen(bytes) + 2))) {
            strcpy(more + length, bytes);
            length += strlen(bytes) + 1;
            more[length] = 0;
        } else
            free(text);
        text = more;
        Py_XDECREF(item);
    }
    if (text && count >= 0) {
        *(char **)into = text;
        return 1;
    }
    free(text);
    if (!PyErr_Occurred())
        PyErr_NoMemory();
    return 0;
}

static void free_desk(PyObject *capsule)
{
    desk_release(in(capsule, "aipass.desk"));
}

static void free_run(PyObject *capsule)
{
    run_release(in(capsule, "aipass.run"));
}

/* -- desks ------------------------------------------------------------------------------------------------------------ */

static PyObject *desk_new(PyObject *module, PyObject *arguments)
{
    (void)module;
    const char *root;
    char *special = NULL;
    struct desk *desk = calloc(1, sizeof *desk);
    if (!desk)
        return PyErr_NoMemory();
    atomic_init(&desk->references, 1);
    pthread_mutex_init(&desk->holds_lock, NULL);
    pthread_mutex_init(&desk->queue, NULL);
    bool whole = PyArg_ParseTuple(
        arguments, "yKIIiI" NAMES, &root, &desk->mount, &desk->major, &desk->minor, &desk->wake, &desk->share, to_names, &special,
        to_names, &desk->prefixes, to_names, &desk->suffixes, to_names, &desk->folding);
    if (whole && (whole = (desk->root = strdup(root)) != NULL))
        desk->root_length = strlen(root);
    for (const char *one = special; whole && *one; one += strlen(one) + 1)
        whole = find(&desk->special, one, strlen(one)) || put(&desk->special, one, strlen(one), 1);
    free(special);
    if (whole)
        return PyCapsule_New(desk, "aipass.desk", free_desk);
    desk_release(desk);
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
}

/* Whether no call is between its judgement and its act: what was changed before is in force. */
static bool is_idle(struct desk *desk)
{
    bool idle = true;
    pthread_mutex_lock(&desk->queue);
    for (struct run *run = desk->first; run && idle; run = run->next)
        idle = !atomic_load(&run->judging);
    pthread_mutex_unlock(&desk->queue);
    return idle;
}

static PyObject *desk_freeze(PyObject *module, PyObject *arguments)
{
    (void)module;
    struct desk *desk;
    int frozen;
    if (!PyArg_ParseTuple(arguments, "O&p", to_desk, &desk, &frozen))
        return NULL;
    atomic_fetch_add(&desk->frozen, frozen ? 1 : -1);
    Py_RETURN_NONE;
}

static PyObject *desk_renew(PyObject *module, PyObject *capsule)
{
    (void)module;
    struct desk *desk;
    if (!to_desk(capsule, &desk))
        return NULL;
    atomic_fetch_add(&desk->generation, 1);
    Py_RETURN_NONE;
}

static PyObject *desk_is_idle(PyObject *module, PyObject *capsule)
{
    (void)module;
    struct desk *desk;
    return to_desk(capsule, &desk) ? PyBool_FromLong(is_idle(desk)) : NULL;
}

/* The next call that waits for Python: (run, notification), or (run, None) where the run's last process has ended. */
static PyObject *desk_next(PyObject *module, PyObject *capsule)
{
    (void)module;
    struct desk *desk;
    if (!to_desk(capsule, &desk))
        return NULL;
    struct seccomp_notif asked;
    struct run *found = NULL;
    bool ended = false;
    long long number = 0;
    pthread_mutex_lock(&desk->queue);
    struct run **at = &desk->first;
    for (; *at && !(*at)->count && !((*at)->hung_up && !(*at)->told_of_it); at = &(*at)->next)
        ;
    if ((found = *at) != NULL) {
        number = found->number;
        ended = !found->count;
        if (ended)
            found->told_of_it = true;
        else {
            asked = found->waiting[found->first];
            found->first = (found->first + 1) % FORWARDED, found->count--;
            pthread_cond_signal(&found->room);
        }
        /* It goes to the end of the list: every run has its turn. */
        for (*at = found->next; *at; at = &(*at)->next)
            ;
        *at = found, found->next = NULL;
    }
    pthread_mutex_unlock(&desk->queue);
    if (!found)
        Py_RETURN_NONE;
    return ended ? Py_BuildValue("LO", number, Py_None) : Py_BuildValue("Ly#", number, (char *)&asked, (Py_ssize_t)sizeof asked);
}

/* -- holds ------------------------------------------------------------------------------------------------------------- */

static PyObject *hold_claim(PyObject *module, PyObject *arguments)
{
    (void)module;
    const char *path;
    long long run;
    struct desk *desk;
    if (!PyArg_ParseTuple(arguments, "O&yL", to_desk, &desk, &path, &run))
        return NULL;
    return PyLong_FromLong(hold(desk, path, run));
}

static PyObject *hold_of(PyObject *module, PyObject *arguments)
{
    (void)module;
    const char *path;
    struct desk *desk;
    struct slot found = {0};
    if (!PyArg_ParseTuple(arguments, "O&y", to_desk, &desk, &path))
        return NULL;
    pthread_mutex_lock(&desk->holds_lock);
    struct slot *slot = find(&desk->holds, path, strlen(path));
    if (slot)
        found = *slot;
    pthread_mutex_unlock(&desk->holds_lock);
    if (!slot)
        Py_RETURN_NONE;
    return Py_BuildValue("Ld", (long long)found.value, found.since);
}

/* Drop the hold of a run on a path; on every path where the path is empty, which is always forced. */
static PyObject *hold_drop(PyObject *module, PyObject *arguments)
{
    (void)module;
    const char *path;
    long long run;
    struct desk *desk;
    int forced;
    if (!PyArg_ParseTuple(arguments, "O&yLp", to_desk, &desk, &path, &run, &forced))
        return NULL;
    if (*path) {
        let_go(desk, path, run, forced);
        Py_RETURN_NONE;
    }
    pthread_mutex_lock(&desk->holds_lock);
    for (size_t i = 0; i < desk->holds.size; i++) {
        struct slot *slot = &desk->holds.slots[i];
        if (slot->key && slot->key != GONE && slot->value == run)
            drop(&desk->holds, slot);
    }
    pthread_mutex_unlock(&desk->holds_lock);
    Py_RETURN_NONE;
}

/* A list of (key, number, time) of a table that is locked by `lock`. */
static PyObject *items(struct table *table, pthread_mutex_t *lock)
{
    pthread_mutex_lock(lock);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < table->size; i++) {
        struct slot *slot = &table->slots[i];
        if (!slot->key || slot->key == GONE)
            continue;
        PyObject *item = Py_BuildValue("y#Ld", slot->key, (Py_ssize_t)slot->length, (long long)slot->value, slot->since);
        if (!item || PyList_Append(list, item))
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    pthread_mutex_unlock(lock);
    return list;
}

static PyObject *hold_items(PyObject *module, PyObject *capsule)
{
    (void)module;
    struct desk *desk;
    return to_desk(capsule, &desk) ? items(&desk->holds, &desk->holds_lock) : NULL;
}

/* -- runs -------------------------------------------------------------------------------------------------------------- */

static PyObject *run_add(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *own;
    const char *journal;
    struct desk *desk;
    int walled;
    struct run *run = calloc(1, sizeof *run);
    if (!run)
        return PyErr_NoMemory();
    if (!PyArg_ParseTuple(arguments, "O&LiiOO&yp", to_desk, &desk, &run->number, &run->listener, &run->stop, &own, to_names, &run->devices, &journal, &walled)) {
        free(run->devices);
        free(run);
        return NULL;
    }
    atomic_init(&run->references, 1);
    atomic_fetch_add(&desk->references, 1);
    run->desk = desk, run->walled = walled, run->journal = -1;
    pthread_mutex_init(&run->made, NULL);
    pthread_mutex_init(&run->told, NULL);
    pthread_cond_init(&run->room, NULL);
    sem_init(&run->ready, 0, 0);
    Py_ssize_t count = PySequence_Size(own);
    run->own = calloc((size_t)(count > 0 ? count : 0) + 1, sizeof *run->own);
    bool whole = run->own && (run->journal_path = strdup(journal));
    for (Py_ssize_t i = 0; whole && i < count; i++) {
        PyObject *item = PySequence_GetItem(own, i);
        const char *path;
        whole = item && PyArg_ParseTuple(item, "yi", &path, &run->own[i].handle) && (run->own[i].path = strdup(path));
        if (whole)
            run->own[i].length = strlen(path), run->owns++;
        Py_XDECREF(item);
    }
    PyObject *made = whole ? PyCapsule_New(run, "aipass.run", free_run) : NULL;
    if (!made) {
        run_release(run);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    PyThreadState *state = PyEval_SaveThread();
    bool started = run_start(run);
    PyEval_RestoreThread(state);
    if (started)
        return made;
    PyErr_SetFromErrno(PyExc_OSError);
    Py_DECREF(made);
    return NULL;
}

/* Forget a run: it is served no more, once it is idle. */
static PyObject *run_stop(PyObject *module, PyObject *capsule)
{
    (void)module;
    struct run *run;
    if (!to_run(capsule, &run))
        return NULL;
    atomic_store(&run->serves, false);
    pthread_mutex_lock(&run->desk->queue);
    run->stopped = true;
    struct run **at = &run->desk->first;
    for (; *at && *at != run; at = &(*at)->next)
        ;
    bool there = *at;
    if (there)
        *at = run->next;
    pthread_cond_broadcast(&run->room);
    pthread_mutex_unlock(&run->desk->queue);
    if (there)
        run_release(run);
    Py_RETURN_NONE;
}

static PyObject *run_is_idle(PyObject *module, PyObject *capsule)
{
    (void)module;
    struct run *run;
    return to_run(capsule, &run) ? PyBool_FromLong(!atomic_load(&run->judging)) : NULL;
}

/* In force once the run is idle. */
static PyObject *run_serve(PyObject *module, PyObject *arguments)
{
    (void)module;
    struct run *run;
    int serves;
    if (!PyArg_ParseTuple(arguments, "O&p", to_run, &run, &serves))
        return NULL;
    atomic_store(&run->serves, serves);
    Py_RETURN_NONE;
}

static PyObject *run_allow(PyObject *module, PyObject *arguments)
{
    (void)module;
    struct run *run;
    const char *key;
    Py_ssize_t length;
    struct verdict *verdict = calloc(1, sizeof *verdict);
    if (!verdict)
        return PyErr_NoMemory();
    if (!PyArg_ParseTuple(arguments, "O&y#I" "O&O&", to_run, &run, &key, &length, &verdict->flags, to_names, &verdict->except, to_names, &verdict->absent)) {
        forget_verdict((intptr_t)verdict);
        return NULL;
    }
    verdict->generation = atomic_load(&run->desk->generation);
    pthread_mutex_lock(&run->told);
    bool all = run->verdicts.live >= MOST_VERDICTS;
    if (all)
        empty(&run->verdicts, forget_verdict);
    struct slot *slot = find(&run->verdicts, key, (size_t)length);
    if (slot) {
        forget_verdict(slot->value);
        slot->value = (intptr_t)verdict;
    } else if (!put(&run->verdicts, key, (size_t)length, (intptr_t)verdict))
        forget_verdict((intptr_t)verdict); /* only slower */
    pthread_mutex_unlock(&run->told);
    return PyBool_FromLong(all); /* whether all others were forgotten */
}

/* What a run has made: 0 the paths that it opened for writing, 1 the files that it removed. */
static struct table *made(struct run *run, int which)
{
    return which ? &run->removed : &run->opened;
}

static PyObject *made_items(PyObject *module, PyObject *arguments)
{
    (void)module;
    struct run *run;
    int which;
    return PyArg_ParseTuple(arguments, "O&i", to_run, &run, &which) ? items(made(run, which), &run->made) : NULL;
}

static PyObject *made_has(PyObject *module, PyObject *arguments)
{
    (void)module;
    struct run *run;
    int which;
    const char *key;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "O&iy#", to_run, &run, &which, &key, &length))
        return NULL;
    pthread_mutex_lock(&run->made);
    bool there = find(made(run, which), key, (size_t)length);
    pthread_mutex_unlock(&run->made);
    return PyBool_FromLong(there);
}

static PyObject *made_add(PyObject *module, PyObject *arguments)
{
    (void)module;
    struct run *run;
    int which;
    const char *key;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "O&iy#", to_run, &run, &which, &key, &length))
        return NULL;
    if (!remember(run, made(run, which), key, (size_t)length, which ? MOST_REMOVED : SIZE_MAX))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *made_drop(PyObject *module, PyObject *arguments)
{
    (void)module;
    struct run *run;
    int which;
    const char *key;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "O&iy#", to_run, &run, &which, &key, &length))
        return NULL;
    pthread_mutex_lock(&run->made);
    struct slot *slot = find(made(run, which), key, (size_t)length);
    if (slot)
        drop(made(run, which), slot);
    pthread_mutex_unlock(&run->made);
    Py_RETURN_NONE;
}

/* (time of the last journalled write on the monotonic clock in ns, calls carried out, calls forwarded) */
static PyObject *run_state(PyObject *module, PyObject *capsule)
{
    (void)module;
    struct run *run;
    if (!to_run(capsule, &run))
        return NULL;
    unsigned long long carried = atomic_load(&run->carried), forwarded = atomic_load(&run->forwarded);
    return Py_BuildValue("LKK", (long long)atomic_load(&run->moved), carried, forwarded);
}

/* -- for tests ----------------------------------------------------------------------------------------------------------- */

static PyObject *test_escape(PyObject *module, PyObject *arguments)
{
    (void)module;
    const char *path;
    if (!PyArg_ParseTuple(arguments, "y", &path))
        return NULL;
    char *text = malloc(6 * strlen(path) + 1);
    if (!text)
        return PyErr_NoMemory();
    PyObject *found = PyBytes_FromStringAndSize(text, (Py_ssize_t)escape(text, path));
    free(text);
    return found;
}

static PyObject *test_is_special(PyObject *module, PyObject *arguments)
{
    (void)module;
    const char *name;
    struct desk *desk;
    if (!PyArg_ParseTuple(arguments, "O&y", to_desk, &desk, &name))
        return NULL;
    return PyBool_FromLong(strlen(name) <= NAME_MAX && is_special(desk, name));
}

static PyMethodDef functions[] = {
    {"desk_new", desk_new, METH_VARARGS, NULL},
    {"desk_freeze", desk_freeze, METH_VARARGS, NULL},
    {"desk_is_idle", desk_is_idle, METH_O, NULL},
    {"desk_renew", desk_renew, METH_O, NULL},
    {"desk_next", desk_next, METH_O, NULL},
    {"hold_claim", hold_claim, METH_VARARGS, NULL},
    {"hold_of", hold_of, METH_VARARGS, NULL},
    {"hold_drop", hold_drop, METH_VARARGS, NULL},
    {"hold_items", hold_items, METH_O, NULL},
    {"run_add", run_add, METH_VARARGS, NULL},
    {"run_stop", run_stop, METH_O, NULL},
    {"run_is_idle", run_is_idle, METH_O, NULL},
    {"run_serve", run_serve, METH_VARARGS, NULL},
    {"run_allow", run_allow, METH_VARARGS, NULL},
    {"run_state", run_state, METH_O, NULL},
    {"made_items", made_items, METH_VARARGS, NULL},
    {"made_has", made_has, METH_VARARGS, NULL},
    {"made_add", made_add, METH_VARARGS, NULL},
    {"made_drop", made_drop, METH_VARARGS, NULL},
    {"escape", test_escape, METH_VARARGS, NULL},
    {"is_special", test_is_special, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_fast", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void)
{
    PyObject *module = PyModule_Create(&definition);
    /* An older library beside newer Python is not used: see fast.py. */
    if (module && PyModule_AddIntConstant(module, "FACE", 1)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
