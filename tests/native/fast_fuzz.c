/* Feeds the fast path with calls that nobody would make. Built with sanitizers; see tests/supervisor/test_fast_native.py.
 *
 * Its code is included, and two of the kernel's calls are scripted: reading a caller's memory, and the requests to the
 * listener. All others are real, in a folder with what a run may write (`own`, `exact`), and what it may not (`foreign`).
 * With libFuzzer (-fsanitize=fuzzer -DFUZZER) or alone: fast_fuzz ROOT ROUNDS SEED.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <ftw.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static ssize_t scripted_read(pid_t, const struct iovec *, unsigned long, const struct iovec *, unsigned long, unsigned long);
static int scripted_ioctl(int, unsigned long, void *);
#define process_vm_readv scripted_read
#define ioctl(handle, request, argument) scripted_ioctl(handle, request, (void *)(argument))
#undef _GNU_SOURCE
#include "../../aipass/supervisor/fence/_fast.c"

static const unsigned char *input;
static size_t left;
static char memory[2][PATH_MAX + 32];
static size_t filled[2];
static int answers, given;
static struct run *run;
static char root[PATH_MAX];

static unsigned take(unsigned most)
{
    unsigned value = 0;
    for (int i = 0; i < 2 && left; i++, left--)
        value = value << 8 | *input++;
    return most ? value % most : value;
}

static ssize_t scripted_read(pid_t pid, const struct iovec *to, unsigned long to_count, const struct iovec *from, unsigned long count, unsigned long flags)
{
    (void)pid, (void)to_count, (void)flags;
    size_t wanted = 0, which = (size_t)from[0].iov_base >> 20;
    for (unsigned long i = 0; i < count; i++)
        wanted += from[i].iov_len;
    if (which < 1 || which > 2 || !filled[which - 1]) {
        errno = EFAULT;
        return -1;
    }
    size_t size = filled[which - 1] < wanted ? filled[which - 1] : wanted;
    memcpy(to[0].iov_base, memory[which - 1], size);
    return (ssize_t)size;
}

static int scripted_ioctl(int handle, unsigned long request, void *argument)
{
    (void)handle;
    if (request == SECCOMP_IOCTL_NOTIF_ID_VALID)
        return take(16) ? 0 : (errno = ENOENT, -1);
    if (request == SECCOMP_IOCTL_NOTIF_SEND)
        return answers++, 0;
    if (request == SECCOMP_IOCTL_NOTIF_ADDFD) {
        struct seccomp_notif_addfd *asked = argument;
        struct stat found;
        if (fcntl((int)asked->srcfd, F_GETFD) < 0 || fstat((int)asked->srcfd, &found))
            abort(); /* it gives what it does not have */
        if (!take(8))
            return errno = take(2) ? EMFILE : ENOENT, -1;
        given++;
        if (asked->flags & SECCOMP_ADDFD_FLAG_SEND)
            answers++;
        return 100;
    }
    abort();
}

/* -- what must not change ---------------------------------------------------------------------------------------------- */

static uint64_t sum;

static int add(const char *path, const struct stat *status, int kind, struct FTW *at)
{
    (void)kind, (void)at;
    for (const char *one = path; *one; one++)
        sum = sum * 31 + (unsigned char)*one;
    sum = sum * 31 + status->st_mode;
    sum = sum * 31 + (uint64_t)status->st_ino;
    sum = sum * 31 + (uint64_t)status->st_ctim.tv_nsec + (uint64_t)status->st_ctim.tv_sec;
    return 0;
}

static uint64_t foreign(void)
{
    char path[PATH_MAX + 16];
    sum = 0;
    stpcpy(stpcpy(path, root), "/foreign");
    nftw(path, add, 8, FTW_PHYS);
    return sum;
}

/* -- calls -------------------------------------------------------------------------------------------------------------- */

static const char *const parts[] = {
    "own", "own/a", "own/b", "own/sub", "own/sub/c", "own/link", "own/to", "own/to/f", "own/hard", "own/pipe", "exact", "foreign", "foreign/f",
    "own/../foreign/f", "own/sub/../../foreign", "own/HEAD", "own/.git", "own/sub/config", "/proc/self/cwd", "/proc/self/fd/3", "/dev/null", "/", ".", "..",
    "own/", "own/a/", "own//b", "./own/./n", "own/new", "own/sub/new", "own/\xff\xfe", "own/\xe2\x84\xaa", "own/a (deleted)", "tmp", "tmp/t", "tmp/x/y",
};

static size_t make_path(char *to)
{
    size_t length = 0;
    switch (take(8)) {
    case 0: /* bytes */
        length = take(40);
        for (size_t i = 0; i < length; i++)
            to[i] = (char)take(256);
        return length; /* without an end */
    case 1: /* long */
        length = PATH_MAX - 20 + take(40);
        memset(to, take(2) ? '/' : 'a', length);
        memcpy(to, "own/", 4);
        break;
    case 2: /* absolute */
        length = (size_t)(stpcpy(stpcpy(to, root), "/") - to);
        /* fall through */
    default:
        length += (size_t)(stpcpy(to + length, parts[take(sizeof parts / sizeof *parts)]) - to - length);
        if (!take(4))
            length += (size_t)(stpcpy(to + length, "/x") - to - length);
    }
    to[length] = 0;
    return length + 1;
}

static const int numbers[] = {
    SYS_openat, SYS_openat, SYS_openat, SYS_mkdirat, SYS_unlinkat, SYS_renameat2, SYS_renameat, SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_utimensat, SYS_umask, SYS_linkat,
#ifdef SYS_open
    SYS_open, SYS_creat, SYS_mkdir, SYS_unlink, SYS_rmdir, SYS_rename, SYS_chmod, SYS_chown, SYS_lchown,
#endif
};

static uint64_t number_or_path(void)
{
    switch (take(6)) {
    case 0:
        return (uint64_t)AT_FDCWD;
    case 1:
        return take(8);
    case 2:
        return (uint64_t)take(0) << 48 | take(0);
    default:
        return (uint64_t)(1 + take(2)) << 20 | (0xFF0 + take(32)); /* an address: which memory, near the end of a page */
    }
}

static void one_call(const unsigned char *data, size_t size)
{
    input = data, left = size;
    struct seccomp_notif asked = {.id = 1, .pid = (uint32_t)gettid()};
    filled[0] = make_path(memory[0]), filled[1] = make_path(memory[1]);
    asked.data.nr = numbers[take(sizeof numbers / sizeof *numbers)];
    for (int i = 0; i < 6; i++)
        asked.data.args[i] = number_or_path();
    bool at = asked.data.nr == SYS_openat || asked.data.nr == SYS_mkdirat || asked.data.nr == SYS_unlinkat || asked.data.nr == SYS_renameat2 || asked.data.nr == SYS_renameat;
    if (take(8)) {
        if (at)
            asked.data.args[0] = asked.data.args[2] = (uint64_t)AT_FDCWD;
        asked.data.args[at] = 1 << 20;
        if (asked.data.nr == SYS_renameat2 || asked.data.nr == SYS_renameat)
            asked.data.args[3] = 2 << 20, asked.data.args[4] = 0;
        if (asked.data.nr == SYS_openat)
            asked.data.args[2] = (uint64_t[]){O_WRONLY, O_WRONLY | O_CREAT, O_RDWR | O_TRUNC, O_WRONLY | O_CREAT | O_EXCL, O_RDONLY | O_CREAT}[take(5)], asked.data.args[3] = take(0);
        if (asked.data.nr == SYS_unlinkat)
            asked.data.args[2] = take(2) ? AT_REMOVEDIR : 0;
    }
    struct call call = {.run = run, .asked = &asked};
    answers = 0;
    enum outcome outcome = carry_out(&call);
    if (call.judging)
        judged(&call);
    if ((outcome == DONE) != (answers == 1) || answers > 1)
        abort(); /* each call is answered once, or left to Python */
    while (call.count)
        close(call.handles[--call.count]);
    umask(0);
    if (!take(16)) {
        atomic_store(&run->desk->frozen, true);
        atomic_store(&run->desk->frozen, false);
    }
}

static void prepare(const char *where)
{
    char path[PATH_MAX], list[] = "/dev/null\0";
    if (!realpath(where, root) || chdir(root))
        abort();
    mkdir("own", 0755), mkdir("own/sub", 0755), mkdir("own/to", 0755), mkdir("foreign", 0755), mkdir("tmp", 0755);
    for (const char *const *one = (const char *const[]){"own/a", "own/to/f", "exact", "foreign/f", "foreign/hard", NULL}; *one; one++)
        close(open(*one, O_WRONLY | O_CREAT, 0644));
    if (symlink("../foreign/f", "own/link") || link("foreign/hard", "own/hard") || mkfifo("own/pipe", 0600))
        abort();
    struct statx status;
    if (statx(AT_FDCWD, ".", 0, STATUS, &status))
        abort();
    struct desk *desk = calloc(1, sizeof *desk);
    atomic_init(&desk->references, 1);
    pthread_mutex_init(&desk->holds_lock, NULL);
    pthread_mutex_init(&desk->queue, NULL);
    desk->root = strdup(root), desk->root_length = strlen(root);
    desk->mount = status.stx_mnt_id, desk->major = status.stx_dev_major, desk->minor = status.stx_dev_minor;
    desk->prefixes = calloc(1, 1), desk->suffixes = calloc(1, 1), desk->folding = memcpy(calloc(1, 5), "\xe2\x84\xaa", 3);
    put(&desk->special, ".git", 4, 1), put(&desk->special, "head", 4, 1), put(&desk->special, "config", 6, 1);
    run = calloc(1, sizeof *run);
    atomic_init(&run->references, 1);
    run->desk = desk, run->number = 7, run->walled = true;
    atomic_store(&run->serves, true);
    pthread_mutex_init(&run->made, NULL);
    pthread_mutex_init(&run->told, NULL);
    run->devices = memcpy(malloc(sizeof list), list, sizeof list);
    run->own = calloc(1, sizeof *run->own);
    stpcpy(stpcpy(path, root), "/tmp");
    run->own[0] = (struct own){strdup(path), strlen(path), open("tmp", O_PATH | O_DIRECTORY)};
    run->owns = 1;
    run->journal = open("journal", O_WRONLY | O_CREAT | O_APPEND, 0600);
    for (int i = 0; i < 3; i++) {
        struct verdict *verdict = calloc(1, sizeof *verdict);
        verdict->flags = i < 2 ? HOLDS | FOLDERS : HOLDS, verdict->except = memcpy(calloc(1, 4), "to", 2), verdict->absent = calloc(1, 1);
        char *end = stpcpy(stpcpy(stpcpy(path, root), "/"), (const char *const[]){"own/", "own/sub/", "exact"}[i]);
        put(&run->verdicts, path, (size_t)(end - path), (intptr_t)verdict);
    }
    put(&desk->holds, "own/b", 5, 8); /* another run's */
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
    static uint64_t before;
    if (!run) {
        prepare(getenv("FUZZ_ROOT"));
        before = foreign();
    }
    one_call(data, size);
    struct stat held;
    if (foreign() != before || (!lstat("own/b", &held) && !S_ISDIR(held.st_mode)))
        abort(); /* folders are held by nobody */
    return 0;
}

#ifndef FUZZER
int main(int count, char **words)
{
    if (count != 4)
        return 2;
    setenv("FUZZ_ROOT", words[1], 1);
    uint64_t dice = strtoull(words[3], NULL, 10) | 1;
    unsigned char data[96];
    unsigned long done = 0, rounds = strtoul(words[2], NULL, 10);
    for (unsigned long round = 0; round < rounds; round++) {
        for (size_t i = 0; i < sizeof data; i++) {
            dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
            data[i] = (unsigned char)(dice >> 32);
        }
        LLVMFuzzerTestOneInput(data, sizeof data);
        done += answers;
        if (round % 997 == 0) { /* else all that could be removed is soon gone */
            struct stat found;
            close(open("own/a", O_WRONLY | O_CREAT, 0644));
            mkdir("own/sub", 0755);
            if (lstat("own/link", &found) || !S_ISLNK(found.st_mode)) { /* a fast path that is broken on purpose took it */
                remove("own/link");
                if (symlink("../foreign/f", "own/link"))
                    abort();
            }
        }
    }
    printf("%lu of %lu answered here, %d descriptors given\n", done, rounds, given);
    run_release(run);
    return 0;
}
#endif
