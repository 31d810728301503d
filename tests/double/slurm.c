/*
 * A test double of what loads SPANK plugins in Slurm: srun, and slurmstepd.
 *
 * It is compiled once for each release of Slurm, with its numbers, and offers what that release offers to a plugin, no more. It loads
 * the plugin as Slurm does, checks what Slurm checks, and calls the functions of the plugin in Slurm's order, in the same processes and
 * as the same users. The facts are those of spank(7) and of the behaviour of Slurm; no header of Slurm is needed.
 *
 *   slurm local  PLUGIN ARGUMENT… [--OPTION[=VALUE]…]
 *   slurm remote PLUGIN ARGUMENT… [--OPTION[=VALUE]…] TASKS UID GID -- COMMAND…
 *
 * Exit status: that of the last task, or 20 to 29 for what went wrong in here, which is named on stderr.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* -DYEAR=22 -DMONTH=5 -DMICRO=8 -DAPI=38 */
#define VERSION ((YEAR << 16) | (MONTH << 8) | MICRO)
#define SINCE(year, month) ((YEAR) > (year) || ((YEAR) == (year) && (MONTH) >= (month)))

extern char **environ;

enum { LOCAL = 1, REMOTE = 2 };
enum { SUCCESS = 0, FAILURE = 3000, BAD_ARGUMENT = 3001 };

struct option {
    const char *name, *arginfo, *usage;
    int has_arg, val;
    int (*cb)(int, const char *, int);
};

/* What a plugin gets as its handle. */
struct handle {
    int task;
    int status;
};

static int context, argument_count, tasks = 1, command_count;
static char **arguments, **command;
static uid_t uid;
static gid_t gid;
static gid_t groups[2];
static struct option options[100];
static int option_count;
static char *version_text = "double";

static void fail(int status, const char *text, const char *more)
{
    fprintf(stderr, "double: %s%s\n", text, more ? more : "");
    exit(status);
}

/* What plugins call. */

int spank_context(void)
{
    return context;
}

long slurm_api_version(void)
{
    return (long) API << 16;
}

static void log_line(const char *level, const char *format, va_list list)
{
    fprintf(stderr, "%s: ", level);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
}

#define LOG(function, level)                                                                                                   \
    void function(const char *format, ...)                                                                                     \
    {                                                                                                                          \
        va_list list;                                                                                                          \
        va_start(list, format);                                                                                                \
        log_line(level, format, list);                                                                                         \
        va_end(list);                                                                                                          \
    }

LOG(slurm_error, "error")
LOG(slurm_info, "info")
LOG(slurm_verbose, "verbose")
LOG(slurm_debug, "debug")
#if SINCE(21, 8)
LOG(slurm_spank_log, "tell")
#endif

int spank_option_register(void *handle, struct option *option)
{
    if (!handle || option_count == 100 || !option->name || !option->usage || (option->has_arg && !option->arginfo))
        return BAD_ARGUMENT;
    for (int at = 0; at < option_count; at++)
        if (!strcmp(options[at].name, option->name) || options[at].val == option->val)
            return BAD_ARGUMENT;
    options[option_count++] = *option;
    return SUCCESS;
}

int spank_get_item(void *pointer, int item, ...)
{
    struct handle *handle = pointer;
    int result = SUCCESS;
    va_list list;
    va_start(list, item);
    if (context != REMOTE && item != 0 && item < 20) {
        va_end(list);
        return FAILURE;
    }
    switch (item) {
    case 0: *va_arg(list, uid_t *) = context == REMOTE ? uid : getuid(); break;
    case 1: *va_arg(list, gid_t *) = gid; break;
    case 2: *va_arg(list, uint32_t *) = 4711; break;
    case 3: *va_arg(list, uint32_t *) = 0; break;
    case 4: *va_arg(list, uint32_t *) = 1; break;
    case 5: *va_arg(list, uint32_t *) = 0; break;
    case 6: *va_arg(list, uint32_t *) = tasks; break;
    case 7: *va_arg(list, uint32_t *) = tasks; break;
    case 8: *va_arg(list, uint16_t *) = 1; break;
    case 9: *va_arg(list, int *) = command_count; *va_arg(list, char ***) = command; break;
    case 10: *va_arg(list, char ***) = environ; break;
    case 11:
        if (handle->task < 0)
            result = BAD_ARGUMENT;
        else
            *va_arg(list, int *) = handle->task;
        break;
    case 12: *va_arg(list, uint32_t *) = handle->task; break;
    case 13: *va_arg(list, int *) = handle->status; break;
    case 14: *va_arg(list, pid_t *) = getpid(); break;
    case 19: *va_arg(list, gid_t **) = groups; *va_arg(list, int *) = 2; break;
    case 20: *va_arg(list, char **) = version_text; break;
    default: result = BAD_ARGUMENT;
    }
    va_end(list);
    return result;
}

int spank_getenv(void *handle, const char *name, char *buffer, int size)
{
    const char *value = getenv(name);
    if (!handle || context != REMOTE || !value)
        return FAILURE;
    snprintf(buffer, size, "%s", value);
    return SUCCESS;
}

int spank_setenv(void *handle, const char *name, const char *value, int overwrite)
{
    return handle && context == REMOTE && !setenv(name, value, overwrite) ? SUCCESS : FAILURE;
}

int spank_unsetenv(void *handle, const char *name)
{
    return handle && context == REMOTE && !unsetenv(name) ? SUCCESS : FAILURE;
}

#if SINCE(23, 2)
int spank_prepend_task_argv(void *handle, int count, const char *words[])
{
    (void) handle, (void) count, (void) words;
    return FAILURE;
}
#endif

/* How a plugin is called. */

typedef int (*hook)(void *, int, char **);

static void *library;

static int call(const char *name, struct handle *handle)
{
    hook function = (hook) dlsym(library, name);
    return function ? function(handle, argument_count, arguments) : 0;
}

static void load(const char *path)
{
    library = dlopen(path, RTLD_LAZY);
    if (!library)
        fail(20, "dlopen: ", dlerror());
    char *name = dlsym(library, "plugin_name"), *type = dlsym(library, "plugin_type");
    uint32_t *version = dlsym(library, "plugin_version");
    if (!name || !type || !version)
        fail(21, "not a plugin", NULL);
    if (strcmp(type, "spank"))
        fail(21, "not a SPANK plugin: ", type);
    if ((*version & 0xffff00) != (VERSION & 0xffff00)) {
        char text[40];
        snprintf(text, sizeof text, "%06x, not %06x", *version, VERSION);
        fail(22, "incompatible plugin version: ", text);
    }
    /* Slurm lets a plugin be unloaded and loaded again, and writes nothing here; writable memory is the plugin's own affair. */
    static const char *const unwanted[] = {"slurm_spank_slurmd_exit", "slurm_spank_job_prolog", "slurm_spank_job_epilog"};
    for (unsigned at = 0; at < sizeof unwanted / sizeof *unwanted; at++)
        if (dlsym(library, unwanted[at]))
            fail(23, "this function makes slurmd start a process for each job: ", unwanted[at]);
#if SINCE(25, 5)
    /* How a failing slurm_spank_init is taken: by default the node is drained. */
    int *mode = dlsym(library, "slurm_spank_init_failure_mode");
    if (!mode || *mode == SUCCESS)
        fail(24, "a failure would drain the node", NULL);
#endif
}

/* --OPTION[=VALUE] */
static int give_option(const char *word, int remote)
{
    for (int at = 0; at < option_count; at++) {
        size_t length = strlen(options[at].name);
        if (strncmp(word + 2, options[at].name, length))
            continue;
        const char *rest = word + 2 + length;
        if (*rest == (options[at].has_arg ? '=' : '\0'))
            return options[at].cb(options[at].val, options[at].has_arg ? rest + 1 : NULL, remote);
    }
    fail(25, "no such option: ", word);
    return FAILURE;
}

static int nothing(void *unused)
{
    struct handle handle = {-1, 0};
    (void) unused;
    _exit(call("slurm_spank_user_init", &handle) ? 1 : 0);
}

static void run_task(int task, int go)
{
    struct handle handle = {task, 0};
    char byte;
    if (call("slurm_spank_task_init_privileged", &handle))
        _exit(26);
    if (setgroups(2, groups) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
        _exit(27);
    if (read(go, &byte, 1) < 0)
        _exit(28);
    close(go);
    char number[12];
    snprintf(number, sizeof number, "%d", task);
    setenv("SLURM_PROCID", number, 1);
    if (call("slurm_spank_task_init", &handle))
        _exit(1);
    execvp(command[0], command);
    fprintf(stderr, "double: %s: %s\n", command[0], strerror(errno));
    _exit(127);
}

static int remote(void)
{
    struct handle handle = {-1, 0};
    int go[2], status = 0;
    pid_t pids[64];
    if (call("slurm_spank_init_post_opt", &handle))
        fail(29, "slurm_spank_init_post_opt failed", NULL);
#if SINCE(24, 5)
    /* contain_spank: in a child that shares the memory and nothing else. */
    static char stack[1 << 16] __attribute__((aligned(16)));
    pid_t child = clone(nothing, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    if (child < 0 || waitpid(child, &status, 0) != child || status)
        fail(29, "slurm_spank_user_init failed", NULL);
#else
    if (call("slurm_spank_user_init", &handle))
        fail(29, "slurm_spank_user_init failed", NULL);
    (void) nothing;
#endif
    if (pipe2(go, O_CLOEXEC))
        fail(29, "pipe: ", strerror(errno));
    for (int task = 0; task < tasks; task++) {
        pids[task] = fork();
        if (!pids[task]) {
            close(go[1]);
            run_task(task, go[0]);
        }
    }
    close(go[0]);
    for (int task = 0; task < tasks; task++) {
        handle.task = task;
        call("slurm_spank_task_post_fork", &handle);
    }
    close(go[1]);
    for (int task = 0; task < tasks; task++) {
        waitpid(pids[task], &status, 0);
        handle.task = task;
        handle.status = status;
        call("slurm_spank_task_exit", &handle);
    }
    handle.task = -1;
    call("slurm_spank_exit", &handle);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int count, char **words)
{
    struct handle handle = {-1, 0};
    int at = 3;
    if (count < 3)
        fail(29, "usage: see the top of the source", NULL);
    context = strcmp(words[1], "remote") ? LOCAL : REMOTE;
    /* Plugins of Slurm's own are loaded before: of srun always, of slurmstepd as well. */
    const char *other = getenv("DOUBLE_OTHER_PLUGIN");
    if (other && !dlopen(other, RTLD_LAZY))
        fail(20, "dlopen: ", dlerror());
    load(words[2]);
    arguments = words + at;
    while (at < count && strncmp(words[at], "--", 2) && strchr(words[at], '='))
        at++, argument_count++;
    if (call("slurm_spank_init", &handle))
        fail(29, "slurm_spank_init failed", NULL);
    for (; at < count && !strncmp(words[at], "--", 2) && words[at][2]; at++)
        if (give_option(words[at], context == REMOTE))
            return 1;
    if (context == LOCAL) {
        int result = call("slurm_spank_init_post_opt", &handle);
        call("slurm_spank_exit", &handle);
        printf("%d options\n", option_count);
        return result ? 1 : 0;
    }
    if (count < at + 5)
        fail(29, "usage: see the top of the source", NULL);
    tasks = atoi(words[at]);
    uid = atoi(words[at + 1]);
    gid = atoi(words[at + 2]);
    groups[0] = gid;
    groups[1] = 61001;
    command = words + at + 4;
    command_count = count - at - 4;
    return remote();
}
