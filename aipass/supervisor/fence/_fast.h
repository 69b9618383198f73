/* What the serving threads (_fast.c) and their face towards Python (_fast_python.c) share. */

#ifndef AIPASS_FAST_H
#define AIPASS_FAST_H

#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define FORWARDED 16 /* calls of one run that wait for Python to take them */
#define MOST_VERDICTS 20000 /* of one run; beyond it they are learned again */
#define MOST_REMOVED 10000 /* removed files of one run that it may still mark through its descriptors */
#define UMASKS 64

/* Flags of a verdict. */
#define HOLDS 1u    /* a file is held by the run that writes it first */
#define FOLDERS 2u  /* folders may be made, removed and marked too */

/* A table of byte strings, with a number each. */
struct slot {
    char *key;              /* NULL: free; GONE: removed */
    uint32_t hash, length;
    int64_t value;
    double since;
    bool sure; /* of a hold: more than one call relies on it */
};
struct table {
    struct slot *slots;
    size_t size, used, live; /* size: 0 or a power of two; used: with removed ones */
};
extern char GONE[1];

/* What Python has decided about a folder (all names in it that are not special) or about one file. */
struct verdict {
    uint64_t generation;
    unsigned flags;
    char *except;  /* further special names of this folder, each with its NUL, then an empty one */
    char *absent;  /* absolute paths that must not exist (pieces of a git folder), in the same form */
};

struct run;
struct desk {
    atomic_int references;
    _Atomic uint64_t generation; /* of rights: a verdict is good for one */
    atomic_int frozen;           /* more than 0: nothing is judged */
    pthread_mutex_t holds_lock;
    struct table holds; /* path below the root -> run */
    struct table special; /* names in small letters */
    char *prefixes, *suffixes, *folding; /* special beginnings, ends, and sequences; each with its NUL, then an empty one */
    char *root;
    size_t root_length;
    uint64_t mount;
    uint32_t major, minor;
    unsigned share; /* of 256 calls, those that are forwarded at random: for tests */
    int wake;
    pthread_mutex_t queue;
    struct run *first;
};

struct own {
    char *path;
    size_t length;
    int handle;
};

struct umask_known {
    pid_t tid;
    unsigned epoch, mask;
};

struct run {
    atomic_int references;
    struct desk *desk;
    struct run *next; /* in desk->first, under desk->queue */
    long long number; /* checks have numbers beyond 32 bits */
    int listener, stop;
    bool walled;
    atomic_bool serves; /* whether the fast path may carry out at all: the run has the supervisor's identity */
    struct own *own;
    size_t owns;
    char *devices; /* each with its NUL, then an empty one */
    char *journal_path;
    int journal;
    _Atomic long journal_bytes;
    _Atomic int64_t moved;
    sem_t ready;
    atomic_bool judging; /* it is between its judgement of a call and its act */
    pthread_mutex_t told;
    struct table verdicts; /* under told */
    pthread_mutex_t made;
    struct table opened, removed; /* under made */
    struct umask_known umasks[UMASKS];
    unsigned umask_epoch, umask;
    int64_t umask_changed;
    uint64_t dice;
    _Atomic uint64_t carried, forwarded;
    /* Under desk->queue: what waits for Python. */
    struct seccomp_notif waiting[FORWARDED];
    unsigned first, count;
    pthread_cond_t room;
    bool hung_up, told_of_it, stopped, failed;
};

struct slot *find(const struct table *table, const char *key, size_t length);
struct slot *put(struct table *table, const char *key, size_t length, int64_t value);
void drop(struct table *table, struct slot *slot);
void empty(struct table *table, void (*forget)(int64_t));

void forget_verdict(int64_t value);
void desk_release(struct desk *desk);
void run_release(struct run *run);
bool run_start(struct run *run);

bool is_special(const struct desk *desk, const char *name);
int hold(struct desk *desk, const char *path, long long run);
void let_go(struct desk *desk, const char *path, long long run, bool forced);
bool remember(struct run *run, struct table *table, const char *key, size_t length, size_t most);
size_t escape(char *out, const char *path);

#endif
