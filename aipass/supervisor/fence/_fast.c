/* The fast path of the fence: serves the common system calls of fenced runs without Python.
 *
 * Each run has a thread here. It receives the run's calls (seccomp user notification), carries out those that
 * are simple, and forwards all others unchanged to the serving thread in Python (serve.py), which is the
 * authority. A call is simple if
 *
 *   - it is in the table at the end of the first half of this file, with flags that are named there,
 *   - its path leads through real folders only, to a regular file with one name, a folder, or nothing,
 *   - Python has given this run a verdict for that folder, or for that name, in the present generation,
 *   - no other run holds the path.
 *
 * What this file may never do:
 *
 *   - grant: a verdict comes from Python (`run_allow`), and every change of rights ends all of them (`desk_renew`);
 *   - refuse: EACCES and its explanation come from Python; this file only returns errors that the kernel gives;
 *   - act on a path: it acts on objects and folders that it holds open, and that it has looked at;
 *   - change a file before the line in the run's journal is written;
 *   - read more of a caller than a path and two timestamps;
 *   - wait between its judgement and its act, except for the disk; or touch a Python object in a serving thread.
 *
 * How Python changes a right: it makes the change (a new generation, no service, a freeze), then waits until no call is
 * between its judgement and its act (`run->judging`). A thread first says that it judges, then looks whether it may: so
 * one of the two sees the other. No lock is held meanwhile, and a thread that waits for the disk holds up no other run.
 */

#define _GNU_SOURCE
#include "_fast.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <linux/openat2.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define STACK_BYTES (128 * 1024)
#define JOURNAL_BYTES 500000000L
#define UMASK_SETTLES_NS 10000000L

/* -- tables ---------------------------------------------------------------------------------------------------------- */

char GONE[1];

static uint32_t hash_of(const char *key, size_t length)
{
    uint32_t hash = 2166136261u; /* FNV-1a; agents choose the keys, but a slow table costs only their own run */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)key[i]) * 16777619u;
    return hash ^ hash >> 15;
}

struct slot *find(const struct table *table, const char *key, size_t length)
{
    if (!table->size)
        return NULL;
    uint32_t hash = hash_of(key, length);
    for (size_t at = hash & (table->size - 1);; at = (at + 1) & (table->size - 1)) {
        struct slot *slot = &table->slots[at];
        if (!slot->key)
            return NULL;
        if (slot->key != GONE && slot->hash == hash && slot->length == length && !memcmp(slot->key, key, length))
            return slot;
    }
}

static bool grow(struct table *table)
{
    size_t size = 16;
    while (size < 3 * (table->live + 1))
        size *= 2;
    struct slot *slots = calloc(size, sizeof *slots);
    if (!slots)
        return false;
    for (size_t i = 0; i < table->size; i++) {
        struct slot *old = &table->slots[i];
        if (!old->key || old->key == GONE)
            continue;
        size_t at = old->hash & (size - 1);
        while (slots[at].key)
            at = (at + 1) & (size - 1);
        slots[at] = *old;
    }
    free(table->slots);
    table->slots = slots, table->size = size, table->used = table->live;
    return true;
}

/* The slot of a key that is not there yet; NULL without memory. */
struct slot *put(struct table *table, const char *key, size_t length, int64_t value)
{
    if (2 * (table->used + 1) > table->size && !grow(table))
        return NULL;
    char *copy = malloc(length + 1);
    if (!copy)
        return NULL;
    memcpy(copy, key, length);
    copy[length] = 0;
    uint32_t hash = hash_of(key, length);
    size_t at = hash & (table->size - 1);
    while (table->slots[at].key)
        at = (at + 1) & (table->size - 1);
    table->slots[at] = (struct slot){copy, hash, (uint32_t)length, value, 0, false};
    table->used++, table->live++;
    return &table->slots[at];
}

void drop(struct table *table, struct slot *slot)
{
    free(slot->key);
    slot->key = GONE;
    table->live--;
}

void empty(struct table *table, void (*forget)(int64_t))
{
    for (size_t i = 0; i < table->size; i++)
        if (table->slots[i].key && table->slots[i].key != GONE) {
            if (forget)
                forget(table->slots[i].value);
            free(table->slots[i].key);
        }
    free(table->slots);
    *table = (struct table){0};
}

void forget_verdict(int64_t value)
{
    struct verdict *verdict = (struct verdict *)(intptr_t)value;
    free(verdict->except);
    free(verdict->absent);
    free(verdict);
}

void desk_release(struct desk *desk)
{
    if (atomic_fetch_sub(&desk->references, 1) != 1)
        return;
    empty(&desk->holds, NULL);
    empty(&desk->special, NULL);
    free(desk->prefixes), free(desk->suffixes), free(desk->folding), free(desk->root);
    pthread_mutex_destroy(&desk->holds_lock);
    pthread_mutex_destroy(&desk->queue);
    free(desk);
}

void run_release(struct run *run)
{
    if (atomic_fetch_sub(&run->references, 1) != 1)
        return;
    empty(&run->verdicts, forget_verdict);
    empty(&run->opened, NULL);
    empty(&run->removed, NULL);
    for (size_t i = 0; i < run->owns; i++)
        free(run->own[i].path);
    free(run->own), free(run->devices), free(run->journal_path);
    pthread_mutex_destroy(&run->made);
    pthread_mutex_destroy(&run->told);
    pthread_cond_destroy(&run->room);
    sem_destroy(&run->ready);
    desk_release(run->desk);
    free(run);
}

/* -- one call -------------------------------------------------------------------------------------------------------- */

enum outcome { DONE, FORWARD };

/* What a call works with; its descriptors are closed after the answer. */
struct call {
    struct run *run;
    struct seccomp_notif *asked;
    bool judging;
    int handles[12], count;
};

/* Where a path leads: a folder that is held open, the folder's path, the last name, and what is there. */
struct place {
    int folder, handle; /* handle: -1 where nothing is there */
    char path[2 * PATH_MAX]; /* folder, '/', name */
    size_t at, length;       /* length of the folder's path, and of the whole */
    const char *name;
    bool own;                /* in a folder of the run's own */
    struct statx status;
};

#define STATUS (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID)

static int keep(struct call *call, int handle)
{
    if (handle < 0)
        return -1;
    if (call->count == (int)(sizeof call->handles / sizeof *call->handles)) {
        close(handle);
        errno = EMFILE;
        return -1;
    }
    return call->handles[call->count++] = handle;
}

static int open_path(struct call *call, int folder, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = {.flags = flags | O_PATH | O_CLOEXEC, .resolve = resolve | RESOLVE_NO_MAGICLINKS};
    return keep(call, (int)syscall(SYS_openat2, folder, path, &how, sizeof how));
}

/* Write text, then a number, and end it: printf(3) takes longer than some system calls. Returns the end. */
static char *join(char *to, const char *text, unsigned long long number)
{
    char digits[24], *at = digits + sizeof digits;
    do
        *--at = (char)('0' + number % 10);
    while (number /= 10);
    to = stpcpy(to, text);
    memcpy(to, at, (size_t)(digits + sizeof digits - at));
    to += digits + sizeof digits - at;
    *to = 0;
    return to;
}

/* The name under which this thread opens an object again that it holds open. */
static const char *current(char *name, int handle)
{
    join(name, "/proc/thread-self/fd/", (unsigned)handle);
    return name;
}

static int open_proc(struct call *call, const char *name, uint64_t flags)
{
    char path[64];
    stpcpy(stpcpy(join(path, "/proc/", call->asked->pid), "/"), name);
    return keep(call, open(path, (int)flags | O_CLOEXEC));
}

static bool still_waits(struct call *call)
{
    return !ioctl(call->run->listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &call->asked->id);
}

static enum outcome reply(struct call *call, int64_t value, int error, uint32_t flags)
{
    struct seccomp_notif_resp answer = {.id = call->asked->id, .val = value, .error = -error, .flags = flags};
    ioctl(call->run->listener, SECCOMP_IOCTL_NOTIF_SEND, &answer); /* an error: the caller died before the answer */
    return DONE;
}

/* The kernel performs the call: only inside the run's own folders, which its Landlock domain limits it to. */
static enum outcome let_through(struct call *call)
{
    return reply(call, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
}

/* From here on Python waits for this call before a change of rights is in force. Returns whether the call may be judged. */
static bool judge(struct call *call)
{
    struct run *run = call->run;
    call->judging = true;
    atomic_store(&run->judging, true);
    return atomic_load(&run->serves) && !atomic_load(&run->desk->frozen);
}

static void judged(struct call *call)
{
    call->judging = false;
    atomic_store(&call->run->judging, false);
}

/* Read up to `most` bytes of the caller's memory; returns their number, 0 for none. */
static size_t read_memory(struct call *call, uint64_t address, void *into, size_t most)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), first = page - address % page;
    if (first > most)
        first = most;
    struct iovec here = {into, most};
    /* Two parts: the second page may be missing, and the kernel reads whole parts. */
    struct iovec there[2] = {{(void *)(uintptr_t)address, first}, {(void *)(uintptr_t)(address + first), most - first}};
    ssize_t got = process_vm_readv((pid_t)call->asked->pid, &here, 1, there, most > first ? 2 : 1, 0);
    return got < 0 ? 0 : (size_t)got;
}

static bool read_path(struct call *call, uint64_t address, char *path)
{
    size_t got = read_memory(call, address, path, PATH_MAX);
    return got && memchr(path, 0, got) && path[0];
}

static bool is_inside(const char *path, size_t length, const char *folder, size_t folder_length)
{
    return length > folder_length && path[folder_length] == '/' && !memcmp(path, folder, folder_length);
}

static bool is_own(const struct run *run, const char *path, size_t length)
{
    for (size_t i = 0; i < run->owns; i++)
        if (is_inside(path, length, run->own[i].path, run->own[i].length))
            return true;
    return false;
}

/* Find the path of an open object, and the rights that it is judged by: they cannot change until judged(). */
static bool locate(struct call *call, int handle, struct place *place)
{
    if (!judge(call))
        return false;
    char link[64];
    ssize_t got = readlink(current(link, handle), place->path, PATH_MAX);
    static const char gone[] = " (deleted)";
    if (got <= 1 || got >= PATH_MAX || place->path[0] != '/')
        return false;
    if ((size_t)got >= sizeof gone && !memcmp(place->path + got - (sizeof gone - 1), gone, sizeof gone - 1))
        return false; /* or a real name of this form: Python finds out */
    place->length = (size_t)got;
    place->path[got] = 0;
    return true;
}

static bool is_on_root(const struct desk *desk, const struct statx *status)
{
    return status->stx_mask & STATX_MNT_ID && status->stx_mnt_id == desk->mount && status->stx_dev_major == desk->major &&
           status->stx_dev_minor == desk->minor;
}

static bool is_living_folder(const struct desk *desk, int handle)
{
    struct statx status;
    return !statx(handle, "", AT_EMPTY_PATH, STATUS, &status) && status.stx_nlink && is_on_root(desk, &status);
}

/* Append the last name to the folder, and look at what is there. */
static bool look_at(struct call *call, struct place *place, const char *name)
{
    const struct desk *desk = call->run->desk;
    size_t length = strlen(name);
    if (length > NAME_MAX)
        return false;
    place->at = place->length;
    place->path[place->at] = '/';
    memcpy(place->path + place->at + 1, name, length + 1);
    place->name = place->path + place->at + 1;
    place->length = place->at + 1 + length;
    if (place->length >= PATH_MAX)
        return false; /* the journal's line has room for so much */
    place->own = is_own(call->run, place->path, place->length);
    if (place->own)
        judged(call); /* it may be on any disk, and Python changes no right to it */
    else if (!is_inside(place->path, place->length, desk->root, desk->root_length) || !is_living_folder(desk, place->folder))
        return false;
    place->handle = open_path(call, place->folder, place->name, O_NOFOLLOW, 0);
    if (place->handle < 0)
        return errno == ENOENT;
    return !statx(place->handle, "", AT_EMPTY_PATH, STATUS, &place->status);
}

static int start_of(struct call *call, int folder)
{
    char name[32] = "cwd";
    if (folder != AT_FDCWD) {
        if (folder < 0)
            return -1;
        join(name, "fd/", (unsigned)folder);
    }
    return open_proc(call, name, O_PATH | O_DIRECTORY);
}

/* Open the folder of a caller's path, through real folders only. Returns the last name; NULL: Python resolves the path. */
static const char *reach(struct call *call, int from, char *path, struct place *place)
{
    char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
        return NULL;
    int start = path[0] == '/' ? -1 : start_of(call, from);
    if (path[0] != '/' && start < 0)
        return NULL;
    if (!slash)
        place->folder = start;
    else {
        *slash = 0;
        place->folder = open_path(call, start, slash == path ? "/" : path, O_DIRECTORY, RESOLVE_NO_SYMLINKS);
        *slash = '/';
    }
    return place->folder < 0 ? NULL : name;
}

static bool resolve(struct call *call, int from, char *path, struct place *place)
{
    const char *name = reach(call, from, path, place);
    return name && locate(call, place->folder, place) && look_at(call, place, name);
}

/* -- rights -------------------------------------------------------------------------------------------------------- */

static bool listed(const char *list, const char *text)
{
    for (; list && *list; list += strlen(list) + 1)
        if (!strcmp(list, text))
            return true;
    return false;
}

/* Whether a name may have a meaning of its own, for git or for what runs code: Python decides about those. */
bool is_special(const struct desk *desk, const char *name)
{
    char small[NAME_MAX + 1];
    size_t length = 0;
    bool foreign = false;
    for (; name[length]; length++) {
        unsigned char letter = (unsigned char)name[length];
        foreign |= letter >= 128;
        small[length] = (char)(letter >= 'A' && letter <= 'Z' ? letter + 32 : letter);
    }
    small[length] = 0;
    if (find(&desk->special, small, length))
        return true;
    for (const char *one = desk->prefixes; *one; one += strlen(one) + 1)
        if (!strncmp(small, one, strlen(one)))
            return true;
    for (const char *one = desk->suffixes; *one; one += strlen(one) + 1)
        if (length >= strlen(one) && !strcmp(small + length - strlen(one), one))
            return true;
    /* Letters that are ASCII letters without their case (the Kelvin sign is a k). */
    for (const char *one = desk->folding; foreign && *one; one += strlen(one) + 1)
        if (strstr(small, one))
            return true;
    return false;
}

static const struct verdict *look_up(const struct run *run, const char *key, size_t length)
{
    struct slot *slot = find(&run->verdicts, key, length);
    const struct verdict *found = slot ? (const struct verdict *)(intptr_t)slot->value : NULL;
    return found && found->generation == atomic_load(&run->desk->generation) ? found : NULL;
}

/* The flags of what Python has decided about a place in the repository; -1: Python decides. */
static int verdict_of(struct call *call, const struct place *place)
{
    struct run *run = call->run;
    const struct desk *desk = run->desk;
    if (place->own || !is_inside(place->path, place->length, desk->root, desk->root_length))
        return -1;
    pthread_mutex_lock(&run->told);
    /* A verdict about a folder is under its path with a closing `/`. */
    const struct verdict *found = look_up(run, place->path, place->at + 1);
    if (found && (is_special(desk, place->name) || listed(found->except, place->name)))
        found = NULL;
    if (!found)
        found = look_up(run, place->path, place->length);
    for (const char *one = found ? found->absent : NULL; found && one && *one; one += strlen(one) + 1)
        if (!faccessat(AT_FDCWD, one, F_OK, AT_SYMLINK_NOFOLLOW) || errno != ENOENT)
            found = NULL;
    int flags = found ? (int)found->flags : -1;
    pthread_mutex_unlock(&run->told);
    return flags;
}

/* A regular file that has no other name: another owner could reach it by one. */
static bool is_single_file(const struct desk *desk, const struct statx *status)
{
    return S_ISREG(status->stx_mode) && status->stx_nlink == 1 && is_on_root(desk, status);
}

static const char *below(const struct desk *desk, const struct place *place)
{
    return place->path + desk->root_length + 1;
}

/* Hold a path for this run. Returns 0 if it was held already, 1 if it is now, -1 if another run holds it. */
int hold(struct desk *desk, const char *path, long long run)
{
    size_t length = strlen(path);
    pthread_mutex_lock(&desk->holds_lock);
    struct slot *slot = find(&desk->holds, path, length);
    int found = slot && slot->value == run ? 0 : -1;
    if (!found)
        slot->sure = true; /* whatever becomes of the call that held it first */
    if (!slot && (slot = put(&desk->holds, path, length, run)) != NULL) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        slot->since = (double)now.tv_sec + now.tv_nsec / 1e9;
        found = 1;
    }
    pthread_mutex_unlock(&desk->holds_lock);
    return found;
}

/* Drop a hold that the caller took, or, where it is forced, any of this run. */
void let_go(struct desk *desk, const char *path, long long run, bool forced)
{
    pthread_mutex_lock(&desk->holds_lock);
    struct slot *slot = find(&desk->holds, path, strlen(path));
    if (slot && slot->value == run && (forced || !slot->sure))
        drop(&desk->holds, slot);
    pthread_mutex_unlock(&desk->holds_lock);
}

/* -- what is recorded ------------------------------------------------------------------------------------------------ */

bool remember(struct run *run, struct table *table, const char *key, size_t length, size_t most)
{
    pthread_mutex_lock(&run->made);
    if (table->live >= most)
        empty(table, NULL);
    bool there = find(table, key, length) || put(table, key, length, 1);
    pthread_mutex_unlock(&run->made);
    return there;
}

struct object {
    uint64_t device, inode;
    int64_t born;
};

static void remember_removed(struct run *run, const struct statx *status)
{
    struct object object = {(uint64_t)status->stx_dev_major << 32 | status->stx_dev_minor, status->stx_ino, 0};
    if (status->stx_mask & STATX_BTIME)
        object.born = status->stx_btime.tv_sec * 1000000000 + status->stx_btime.tv_nsec;
    remember(run, &run->removed, (char *)&object, sizeof object, MOST_REMOVED);
}

/* One character of UTF-8 as Python reads file names: a byte that is none stands for itself, at U+DC80. */
static uint32_t character(const unsigned char **at)
{
    const unsigned char *in = *at;
    uint32_t code = *in;
    int more = code < 0x80 ? 0 : code >= 0xC2 && code < 0xE0 ? 1 : code >= 0xE0 && code < 0xF0 ? 2 : code >= 0xF0 && code < 0xF5 ? 3 : -1;
    if (more > 0) {
        code &= 0x3F >> more;
        for (int i = 1; i <= more && more > 0; i++) {
            if ((in[i] & 0xC0) != 0x80)
                more = -1;
            else
                code = code << 6 | (in[i] & 0x3F);
        }
        static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
        if (more > 0 && (code < least[more] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)))
            more = -1;
    }
    if (more < 0) {
        *at = in + 1;
        return 0xDC00u + *in;
    }
    *at = in + 1 + more;
    return code;
}

/* A path as the text of a JSON string, in ASCII, as Python's json writes it. Returns the length. */
size_t escape(char *out, const char *path)
{
    char *to = out;
    for (const unsigned char *at = (const unsigned char *)path; *at;) {
        uint32_t code = character(&at);
        const char *quick = code == '"' ? "\\\"" : code == '\\' ? "\\\\" : code == '\n' ? "\\n" : code == '\r' ? "\\r" : code == '\t' ? "\\t" : code == '\b' ? "\\b" : code == '\f' ? "\\f" : NULL;
        if (quick)
            to += sprintf(to, "%s", quick);
        else if (code >= 0x20 && code < 0x7F)
            *to++ = (char)code;
        else if (code < 0x10000)
            to += sprintf(to, "\\u%04x", code);
        else
            to += sprintf(to, "\\u%04x\\u%04x", 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + ((code - 0x10000) & 0x3FF));
    }
    return (size_t)(to - out);
}

/* Append a write to the journal, before it happens. False: it must not happen here. */
static bool journal(struct call *call, const char *what, const char *path)
{
    struct run *run = call->run;
    char line[6 * PATH_MAX + 128];
    struct timespec now;
    if (run->journal < 0 || atomic_load(&run->journal_bytes) > JOURNAL_BYTES)
        return false;
    /* The kernel stamps files with this clock. */
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    char *head = stpcpy(join(stpcpy(stpcpy(line, "[\""), what), "\",", call->asked->pid), ",\"");
    size_t length = (size_t)(head - line);
    length += escape(line + length, path);
    char *end = stpcpy(join(line + length, "\",", (unsigned long long)now.tv_sec * 1000000000 + (unsigned long long)now.tv_nsec), "]\n");
    length = (size_t)(end - line);
    if (write(run->journal, line, length) != (ssize_t)length)
        return false;
    atomic_fetch_add(&run->journal_bytes, (long)length);
    clock_gettime(CLOCK_MONOTONIC, &now);
    atomic_store(&run->moved, (int64_t)now.tv_sec * 1000000000 + now.tv_nsec);
    return true;
}

struct permit { /* of a change of one path: its hold is taken back where the change fails */
    const char *path;
    bool took;
};

static void take_back(struct call *call, struct permit *permit)
{
    if (permit->took)
        let_go(call->run->desk, permit->path, call->run->number, false);
    permit->took = false;
}

/* Take the hold that a change needs. */
static bool take_hold(struct call *call, int verdict, const struct place *place, struct permit *permit)
{
    struct desk *desk = call->run->desk;
    *permit = (struct permit){below(desk, place), false};
    int held = verdict & HOLDS ? hold(desk, permit->path, call->run->number) : 0;
    permit->took = held > 0;
    return held >= 0;
}

/* Take what a change needs: its hold, and a line in the journal. */
static bool permit(struct call *call, int verdict, const struct place *place, const char *what, struct permit *permit)
{
    if (!take_hold(call, verdict, place, permit))
        return false;
    if (journal(call, what, permit->path))
        return true;
    take_back(call, permit);
    return false;
}

/* -- the caller's umask ------------------------------------------------------------------------------------------------ */

static int64_t coarse_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The caller's umask; -1 where it cannot be read. It is known until any process of the run calls umask(2). */
static int umask_of(struct call *call)
{
    struct run *run = call->run;
    pid_t tid = (pid_t)call->asked->pid;
    struct umask_known *known = &run->umasks[(unsigned)tid % UMASKS];
    if (known->tid == tid && known->epoch == run->umask_epoch)
        return (int)known->mask;
    char text[512];
    int file = open_proc(call, "status", O_RDONLY);
    ssize_t got = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (got <= 0)
        return -1;
    text[got] = 0;
    char *line = strstr(text, "\nUmask:\t");
    if (!line)
        return -1;
    unsigned mask = (unsigned)strtoul(line + 8, NULL, 8) & 0777;
    /* Another thread of the caller may be between its question and the kernel's change. */
    if (coarse_now() - run->umask_changed > UMASK_SETTLES_NS)
        *known = (struct umask_known){tid, run->umask_epoch, mask};
    return (int)mask;
}

/* Make with the caller's umask: this thread has one of its own. */
static void use_umask(struct run *run, unsigned mask)
{
    if (run->umask != mask)
        umask((mode_t)mask);
    run->umask = mask;
}

/* -- opening ------------------------------------------------------------------------------------------------------------ */

#define OPEN_FLAGS (O_ACCMODE | O_CREAT | O_EXCL | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW | O_LARGEFILE_ | O_SYNC | O_DSYNC)
#ifdef __aarch64__
#define O_LARGEFILE_ 0400000 /* O_LARGEFILE of the kernel; the C library's is 0 */
#else
#define O_LARGEFILE_ 0100000
#endif
#define REOPEN_FLAGS (O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC | O_LARGEFILE_)

/* Put a descriptor into the caller's table, as the result of its call. Returns 0, or the error that is still to be told. */
static int give(struct call *call, int handle, int flags, bool truncate)
{
    struct seccomp_notif_addfd request = {
        .id = call->asked->id,
        .flags = truncate ? 0 : SECCOMP_ADDFD_FLAG_SEND,
        .srcfd = (uint32_t)handle,
        .newfd_flags = flags & O_CLOEXEC ? O_CLOEXEC : 0,
    };
    int number = ioctl(call->run->listener, SECCOMP_IOCTL_NOTIF_ADDFD, &request);
    if (number < 0)
        return errno;
    if (truncate) {
        /* Only now: at its limit of descriptors the caller's open fails, and must keep the content. */
        int error = ftruncate(handle, 0) ? errno : 0;
        reply(call, error ? 0 : number, error, 0);
    }
    return 0;
}

/* Remove a file that was made in vain, if it is still the same, empty, and the run's. */
static void unmake(struct call *call, struct place *place, int handle)
{
    struct stat found, made;
    if (!fstat(handle, &made) && judge(call) && verdict_of(call, place) >= 0 && !fstatat(place->folder, place->name, &found, AT_SYMLINK_NOFOLLOW) && found.st_ino == made.st_ino && !found.st_size)
        unlinkat(place->folder, place->name, 0);
    judged(call);
}

static enum outcome create(struct call *call, struct place *place, int flags, mode_t mode)
{
    struct run *run = call->run;
    int verdict = verdict_of(call, place);
    if (verdict < 0)
        return FORWARD;
    int mask = umask_of(call);
    struct permit permitted;
    if (mask < 0 || !still_waits(call) || !permit(call, verdict, place, "create", &permitted))
        return FORWARD;
    use_umask(call->run, (unsigned)mask);
    int new = flags | O_EXCL | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC;
    int handle = keep(call, openat(place->folder, place->name, new, mode & 07777));
    if (handle < 0) {
        int error = errno;
        take_back(call, &permitted);
        return error == EEXIST || error == EMFILE ? FORWARD : reply(call, 0, error, 0);
    }
    if (!remember(run, &run->opened, permitted.path, strlen(permitted.path), SIZE_MAX)) {
        unlinkat(place->folder, place->name, 0);
        take_back(call, &permitted);
        return reply(call, 0, ENOMEM, 0);
    }
    judged(call);
    int failed = give(call, handle, flags, false);
    if (failed == EMFILE)
        unmake(call, place, handle);
    return failed ? reply(call, 0, failed, 0) : DONE;
}

static enum outcome open_existing(struct call *call, struct place *place, int flags)
{
    struct run *run = call->run;
    bool writes = (flags & O_ACCMODE) != O_RDONLY;
    if (!writes || !is_single_file(run->desk, &place->status))
        return FORWARD;
    int verdict = verdict_of(call, place);
    struct permit permitted;
    if (verdict < 0 || !still_waits(call) || !permit(call, verdict, place, "write", &permitted))
        return FORWARD;
    char link[64];
    int handle = keep(call, open(current(link, place->handle), (flags & REOPEN_FLAGS) | O_NOCTTY | O_NONBLOCK | O_CLOEXEC));
    if (handle < 0) {
        int error = errno;
        take_back(call, &permitted);
        /* EAGAIN: somebody has a lease on it, and Python waits for that. */
        return error == EAGAIN || error == EMFILE || error == EINTR ? FORWARD : reply(call, 0, error, 0);
    }
    if (!(flags & O_NONBLOCK))
        fcntl(handle, F_SETFL, flags & (O_APPEND | O_LARGEFILE_));
    if (!remember(run, &run->opened, permitted.path, strlen(permitted.path), SIZE_MAX)) {
        take_back(call, &permitted);
        return reply(call, 0, ENOMEM, 0);
    }
    judged(call);
    int failed = give(call, handle, flags, flags & O_TRUNC);
    return failed ? reply(call, 0, failed, 0) : DONE;
}

/* Whether an absolute path lies in an own folder, without links: its full resolution is saved. */
static bool is_plainly_own(struct call *call, const char *path)
{
    struct run *run = call->run;
    size_t length = strlen(path);
    for (size_t i = 0; i < run->owns; i++) {
        struct own *own = &run->own[i];
        if (own->handle < 0 || !is_inside(path, length, own->path, own->length) || !path[own->length + 1])
            continue;
        char rest[PATH_MAX];
        strcpy(rest, path + own->length + 1);
        if (open_path(call, own->handle, rest, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS) >= 0)
            return true;
        char *slash = strrchr(rest, '/');
        if (errno != ENOENT)
            return false;
        if (slash)
            *slash = 0;
        return !slash || open_path(call, own->handle, rest, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS) >= 0;
    }
    return false;
}

static enum outcome on_open(struct call *call, int from, uint64_t address, int flags, mode_t mode)
{
    char path[PATH_MAX];
    struct place place;
    if (flags & ~OPEN_FLAGS || !read_path(call, address, path))
        return FORWARD;
    if (call->run->walled && path[0] == '/' && (listed(call->run->devices, path) || is_plainly_own(call, path)))
        return let_through(call);
    if (!resolve(call, from, path, &place))
        return FORWARD;
    if (place.own && call->run->walled && (place.handle < 0 || !S_ISLNK(place.status.stx_mode)))
        return let_through(call);
    if (place.own)
        return FORWARD;
    if (place.handle >= 0) {
        if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
            return reply(call, 0, EEXIST, 0);
        return open_existing(call, &place, flags);
    }
    return flags & O_CREAT ? create(call, &place, flags, mode) : reply(call, 0, ENOENT, 0);
}

/* -- names ------------------------------------------------------------------------------------------------------------------ */

static enum outcome on_mkdir(struct call *call, int from, uint64_t address, mode_t mode)
{
    char path[PATH_MAX];
    struct place place;
    if (!read_path(call, address, path) || !resolve(call, from, path, &place))
        return FORWARD;
    if (place.handle >= 0)
        return reply(call, 0, EEXIST, 0);
    if (place.own)
        return call->run->walled ? let_through(call) : FORWARD;
    int verdict = verdict_of(call, &place);
    int mask;
    if (verdict < 0 || !(verdict & FOLDERS) || (mask = umask_of(call)) < 0 || !still_waits(call))
        return FORWARD;
    use_umask(call->run, (unsigned)mask);
    return reply(call, 0, mkdirat(place.folder, place.name, mode & 07777) ? errno : 0, 0);
}

static enum outcome on_unlink(struct call *call, int from, uint64_t address, int flags)
{
    char path[PATH_MAX];
    struct place place;
    if (flags & ~AT_REMOVEDIR || !read_path(call, address, path) || !resolve(call, from, path, &place))
        return FORWARD;
    if (place.handle < 0)
        return reply(call, 0, ENOENT, 0);
    bool folder = S_ISDIR(place.status.stx_mode);
    if (folder != !!(flags & AT_REMOVEDIR))
        return reply(call, 0, folder ? EISDIR : ENOTDIR, 0);
    if (place.own)
        return call->run->walled ? let_through(call) : FORWARD;
    int verdict = verdict_of(call, &place);
    if (verdict < 0)
        return FORWARD;
    if (folder) {
        if (!(verdict & FOLDERS) || !is_on_root(call->run->desk, &place.status) || !still_waits(call))
            return FORWARD;
        return reply(call, 0, unlinkat(place.folder, place.name, AT_REMOVEDIR) ? errno : 0, 0);
    }
    struct permit permitted;
    if (!is_single_file(call->run->desk, &place.status) || !still_waits(call) || !permit(call, verdict, &place, "remove", &permitted))
        return FORWARD;
    if (unlinkat(place.folder, place.name, 0)) {
        int error = errno;
        take_back(call, &permitted);
        return reply(call, 0, error, 0);
    }
    remember_removed(call->run, &place.status);
    judged(call);
    /* Answered before `place.handle` is closed, which frees the blocks of a large file. */
    return reply(call, 0, 0, 0);
}

static enum outcome on_rename(struct call *call, int from, uint64_t old, int to, uint64_t new, unsigned flags)
{
    char path[PATH_MAX], other[PATH_MAX];
    struct place source, target;
    struct run *run = call->run;
    if (flags || !read_path(call, old, path) || !read_path(call, new, other))
        return FORWARD;
    /* Both folders first: looking for one may take long, and nothing is locked yet. */
    const char *name = reach(call, from, path, &source), *as = name ? reach(call, to, other, &target) : NULL;
    if (!as || !locate(call, source.folder, &source) || !look_at(call, &source, name) || !locate(call, target.folder, &target) || !look_at(call, &target, as))
        return FORWARD;
    if (source.handle < 0)
        return reply(call, 0, ENOENT, 0);
    bool plain = S_ISREG(source.status.stx_mode) || S_ISDIR(source.status.stx_mode); /* git would wait for a pipe */
    if (source.own && target.own && run->walled && plain)
        return let_through(call);
    if (source.own || target.own)
        return FORWARD;
    int leaves = verdict_of(call, &source), enters = verdict_of(call, &target);
    if (leaves < 0 || enters < 0 || !is_single_file(run->desk, &source.status))
        return FORWARD;
    bool there = target.handle >= 0;
    if (there && (!is_single_file(run->desk, &target.status) || target.status.stx_ino == source.status.stx_ino))
        return FORWARD;
    struct permit removed, written;
    if (!still_waits(call) || !take_hold(call, leaves, &source, &removed))
        return FORWARD;
    /* Both holds before a line is written: what another run holds is not journalled as removed. */
    bool took = take_hold(call, enters, &target, &written);
    if (!took || !journal(call, "remove", removed.path) || !journal(call, there ? "write" : "create", written.path)) {
        take_back(call, &removed);
        if (took)
            take_back(call, &written);
        return FORWARD;
    }
    int failed = 0;
    if (!remember(run, &run->opened, written.path, strlen(written.path), SIZE_MAX))
        failed = ENOMEM;
    else if (renameat(source.folder, source.name, target.folder, target.name))
        failed = errno;
    if (failed) {
        take_back(call, &removed);
        take_back(call, &written);
    } else if (there)
        remember_removed(run, &target.status);
    judged(call);
    return reply(call, 0, failed, 0);
}

/* -- modes, owners, times ---------------------------------------------------------------------------------------------------- */

/* The object of a descriptor of the caller, as a place. */
static bool by_descriptor(struct call *call, int number, struct place *place)
{
    char name[32], text[256];
    if (number < 0)
        return false;
    join(name, "fdinfo/", (unsigned)number);
    int file = open_proc(call, name, O_RDONLY);
    ssize_t got = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (got <= 0)
        return false;
    text[got] = 0;
    char *flags = strstr(text, "flags:");
    if (!flags || strtoul(flags + 6, NULL, 8) & O_PATH)
        return false; /* EBADF, from Python */
    join(name, "fd/", (unsigned)number);
    place->folder = -1;
    place->handle = open_proc(call, name, O_PATH);
    if (place->handle < 0 || statx(place->handle, "", AT_EMPTY_PATH, STATUS, &place->status) || !locate(call, place->handle, place))
        return false;
    char *slash = strrchr(place->path, '/');
    place->at = (size_t)(slash - place->path);
    place->name = slash + 1;
    place->own = is_own(call->run, place->path, place->length);
    return *place->name && place->at && strlen(place->name) <= NAME_MAX;
}

static bool by_path(struct call *call, int from, uint64_t address, struct place *place)
{
    char path[PATH_MAX];
    return address && read_path(call, address, path) && resolve(call, from, path, place) && place->handle >= 0;
}

/* Whether the object may be marked; then the journal names it. `mode`: as it is afterwards; 0 where a folder must not be marked. */
static bool may_mark(struct call *call, struct place *place, unsigned mode)
{
    struct run *run = call->run;
    bool folder = S_ISDIR(place->status.stx_mode);
    if (folder ? (mode & 0700) != 0700 : !S_ISREG(place->status.stx_mode))
        return false; /* a folder without those could bar another owner's way */
    if (place->own)
        return still_waits(call);
    int verdict = verdict_of(call, place);
    if (verdict < 0)
        return false;
    if (folder)
        return verdict & FOLDERS && is_on_root(run->desk, &place->status) && still_waits(call);
    struct permit permitted;
    return is_single_file(run->desk, &place->status) && still_waits(call) && permit(call, verdict, place, "change", &permitted);
}

static enum outcome on_chmod(struct call *call, struct place *place, mode_t mode)
{
    char link[64];
    if (!may_mark(call, place, mode))
        return FORWARD;
    /* chmod(2) takes no O_PATH descriptor, but follows this link to the object. */
    return reply(call, 0, chmod(current(link, place->handle), mode & 07777) ? errno : 0, 0);
}

static enum outcome on_chown(struct call *call, struct place *place, uid_t uid, gid_t gid)
{
    if (!may_mark(call, place, 0))
        return FORWARD;
    return reply(call, 0, fchownat(place->handle, "", uid, gid, AT_EMPTY_PATH) ? errno : 0, 0);
}

static enum outcome on_utimens(struct call *call, int from, uint64_t path, uint64_t address)
{
    struct place place;
    struct timespec times[2];
    /* Before the place is located: the caller's memory may take long. */
    if (address && read_memory(call, address, times, sizeof times) != sizeof times)
        return FORWARD;
    if (address && times[0].tv_nsec == UTIME_OMIT && times[1].tv_nsec == UTIME_OMIT)
        return FORWARD;
    if (!(path ? by_path(call, from, path, &place) : by_descriptor(call, from, &place)) || !may_mark(call, &place, 0700))
        return FORWARD;
    return reply(call, 0, utimensat(place.handle, "", address ? times : NULL, AT_EMPTY_PATH) ? errno : 0, 0);
}

/* -- the table of calls ---------------------------------------------------------------------------------------------------------- */

static enum outcome carry_out(struct call *call)
{
    const struct seccomp_data *data = &call->asked->data;
    const __u64 *a = data->args;
    struct place place;
    switch (data->nr) {
    case SYS_openat:
        return on_open(call, (int)a[0], a[1], (int)(a[2] & 0x7FFFFFFF), (mode_t)a[3]);
    case SYS_mkdirat:
        return on_mkdir(call, (int)a[0], a[1], (mode_t)a[2]);
    case SYS_unlinkat:
        return on_unlink(call, (int)a[0], a[1], (int)a[2]);
    case SYS_renameat2:
        return on_rename(call, (int)a[0], a[1], (int)a[2], a[3], (unsigned)a[4]);
    case SYS_renameat:
        return on_rename(call, (int)a[0], a[1], (int)a[2], a[3], 0);
    case SYS_fchmod:
        return by_descriptor(call, (int)a[0], &place) ? on_chmod(call, &place, (mode_t)a[1]) : FORWARD;
    case SYS_fchmodat: /* without flags in the kernel */
        return by_path(call, (int)a[0], a[1], &place) ? on_chmod(call, &place, (mode_t)a[2]) : FORWARD;
    case SYS_fchown:
        return by_descriptor(call, (int)a[0], &place) ? on_chown(call, &place, (uid_t)a[1], (gid_t)a[2]) : FORWARD;
    case SYS_fchownat:
        if ((int)a[4] & ~AT_SYMLINK_NOFOLLOW || !by_path(call, (int)a[0], a[1], &place))
            return FORWARD;
        return on_chown(call, &place, (uid_t)a[2], (gid_t)a[3]);
    case SYS_utimensat:
        return (int)a[3] & ~AT_SYMLINK_NOFOLLOW ? FORWARD : on_utimens(call, (int)a[0], a[1], a[2]);
    case SYS_umask:
        call->run->umask_epoch++, call->run->umask_changed = coarse_now();
        return let_through(call);
#ifdef SYS_open
    case SYS_open:
        return on_open(call, AT_FDCWD, a[0], (int)(a[1] & 0x7FFFFFFF), (mode_t)a[2]);
    case SYS_creat:
        return on_open(call, AT_FDCWD, a[0], O_CREAT | O_WRONLY | O_TRUNC, (mode_t)a[1]);
    case SYS_mkdir:
        return on_mkdir(call, AT_FDCWD, a[0], (mode_t)a[1]);
    case SYS_unlink:
        return on_unlink(call, AT_FDCWD, a[0], 0);
    case SYS_rmdir:
        return on_unlink(call, AT_FDCWD, a[0], AT_REMOVEDIR);
    case SYS_rename:
        return on_rename(call, AT_FDCWD, a[0], AT_FDCWD, a[1], 0);
    case SYS_chmod:
        return by_path(call, AT_FDCWD, a[0], &place) ? on_chmod(call, &place, (mode_t)a[1]) : FORWARD;
    case SYS_chown:
    case SYS_lchown:
        return by_path(call, AT_FDCWD, a[0], &place) ? on_chown(call, &place, (uid_t)a[1], (gid_t)a[2]) : FORWARD;
#endif
    default:
        return FORWARD;
    }
}

/* -- the thread of a run ------------------------------------------------------------------------------------------------------------ */

static void wake_python(struct desk *desk)
{
    uint64_t one = 1;
    /* EAGAIN: the counter is full, and Python is awake. */
    if (write(desk->wake, &one, sizeof one) < 0)
        return;
}

static void forward(struct call *call)
{
    struct run *run = call->run;
    struct desk *desk = run->desk;
    pthread_mutex_lock(&desk->queue);
    while (run->count == FORWARDED && !run->stopped)
        pthread_cond_wait(&run->room, &desk->queue);
    if (!run->stopped) {
        run->waiting[(run->first + run->count++) % FORWARDED] = *call->asked;
        wake_python(desk);
    }
    pthread_mutex_unlock(&desk->queue);
}

static bool is_forwarded_at_random(struct run *run)
{
    run->dice ^= run->dice << 13, run->dice ^= run->dice >> 7, run->dice ^= run->dice << 17;
    return (run->dice & 255) < run->desk->share;
}

static void serve_one(struct run *run)
{
    struct seccomp_notif asked;
    memset(&asked, 0, sizeof asked); /* the kernel rejects a buffer with anything in it */
    if (ioctl(run->listener, SECCOMP_IOCTL_NOTIF_RECV, &asked))
        return; /* the caller died before its call was received */
    struct call call = {.run = run, .asked = &asked};
    bool may = atomic_load(&run->serves) && (asked.data.nr == SYS_umask || !is_forwarded_at_random(run));
    enum outcome outcome = may ? carry_out(&call) : FORWARD;
    if (call.judging)
        judged(&call);
    if (outcome == FORWARD)
        forward(&call);
    atomic_fetch_add(outcome == DONE ? &run->carried : &run->forwarded, 1);
    while (call.count)
        close(call.handles[--call.count]);
}

/* Share no descriptor, folder or umask with any other thread. Returns whether it worked. */
static bool seclude(struct run *run)
{
    if (unshare(CLONE_FS | CLONE_FILES))
        return false;
    int kept[64], count = 0;
    kept[count++] = 2, kept[count++] = run->listener, kept[count++] = run->stop, kept[count++] = run->desk->wake;
    for (size_t i = 0; i < run->owns && count < 64; i++)
        if (run->own[i].handle >= 0)
            kept[count++] = run->own[i].handle;
    for (int i = 1; i < count; i++) /* by number; they are few */
        for (int j = i; j && kept[j - 1] > kept[j]; j--) {
            int other = kept[j];
            kept[j] = kept[j - 1], kept[j - 1] = other;
        }
    unsigned from = 0;
    for (int i = 0; i < count; i++) {
        if ((unsigned)kept[i] > from)
            syscall(SYS_close_range, from, (unsigned)kept[i] - 1, 0);
        from = (unsigned)kept[i] + 1;
    }
    syscall(SYS_close_range, from, ~0u, 0);
    use_umask(run, 077);
    run->journal = open(run->journal_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    return !chdir("/");
}

static void *serve(void *given)
{
    struct run *run = given;
    bool secluded = seclude(run);
    run->failed = !secluded;
    sem_post(&run->ready);
    if (!secluded) {
        run_release(run);
        return NULL;
    }
    struct pollfd polled[] = {{run->listener, POLLIN, 0}, {run->stop, POLLIN, 0}};
    for (;;) {
        /* poll and not a waiting RECV: that one does not end when the last process of the run does. */
        if (poll(polled, 2, -1) < 0)
            continue;
        if (polled[1].revents)
            break;
        if (polled[0].revents & POLLIN)
            serve_one(run);
        else if (polled[0].revents)
            break;
    }
    pthread_mutex_lock(&run->desk->queue);
    run->hung_up = true;
    if (!run->stopped)
        wake_python(run->desk);
    pthread_mutex_unlock(&run->desk->queue);
    run_release(run);
    return NULL;
}

/* Start the thread that serves a run. Its descriptors are its own when this returns. Sets errno. */
bool run_start(struct run *run)
{
    pthread_attr_t kind;
    pthread_t thread;
    sigset_t all, before;
    run->dice = 0x9E3779B97F4A7C15u ^ (uint64_t)run->number << 20 ^ (uint64_t)coarse_now();
    atomic_fetch_add(&run->references, 2); /* of the thread, and of the list */
    pthread_attr_init(&kind);
    pthread_attr_setstacksize(&kind, STACK_BYTES);
    pthread_attr_setdetachstate(&kind, PTHREAD_CREATE_DETACHED);
    /* Signals are for Python's main thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, &kind, serve, run);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&kind);
    if (failed)
        atomic_fetch_sub(&run->references, 2);
    else {
        while (sem_wait(&run->ready))
            ;
        if (run->failed) {
            failed = ENOMEM;
            atomic_fetch_sub(&run->references, 1);
        }
    }
    errno = failed;
    if (failed)
        return false;
    pthread_mutex_lock(&run->desk->queue);
    run->next = run->desk->first, run->desk->first = run;
    pthread_mutex_unlock(&run->desk->queue);
    return true;
}
