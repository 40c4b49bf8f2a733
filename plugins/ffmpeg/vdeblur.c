/* vdeblur as a frei0r filter, for FFmpeg, MLT (Kdenlive, Shotcut) and GStreamer.

   The filter does nothing to pictures itself. For each instance it starts `vdeblur ffmpeg-helper`
   and hands the pictures over in shared memory: a memfd, which has no name and so ends with the two
   processes, however they end. A socket says whose turn it is; its end tells either side that the
   other one is gone. Written for Linux.

   One picture goes in, one comes out: the one `delay` pictures before, as the helper tells. What
   comes out was asked for two pictures earlier, so that host and helper work at the same time.
   Without a helper the pictures pass through, just as late. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef VDEBLUR_PYTHON
#define VDEBLUR_PYTHON "" /* the interpreter that installed this, if one did */
#endif
#define EXPORT __attribute__((visibility("default")))

/* What is used of the frei0r interface, version 1, in words of our own. */

enum { FILTER = 0, BGRA8888 = 0, INTERFACE = 1, PARAM_STRING = 4 };

typedef struct {
    const char *name, *author;
    int plugin_type, color_model, frei0r_version, major_version, minor_version, num_params;
    const char *explanation;
} PluginInfo;

typedef struct {
    const char *name;
    int type;
    const char *explanation;
} ParamInfo;

/* What goes over the socket, the same in both directions; helper.py has it too. */

typedef struct {
    uint32_t kind;
    uint32_t number; /* READY: the delay; PICTURE: the slot, or of an answer which of them */
    double time;
} Message;

enum { READY = 1, PICTURE = 2 };

/* In the helper. */
enum { HELPER_SOCKET = 0, HELPER_MEMORY = 3, FIRST_OTHER = 4, NOT_FOUND = 127 };

/* Answers are taken so many pictures later; in between lie as many answers, and one in work. */
enum { EXCHANGE = 2, ANSWERS = EXCHANGE + 1, MAX_DELAY = 1000, PATIENCE_MS = 3000 };

/* Numbers are strings too: some hosts keep a frei0r number within 0 and 1. */

enum { OPTIONS, DELAY, COLUMNS, LAYOUT, PARAMS };

static const ParamInfo PARAM[PARAMS] = {
    {"options", PARAM_STRING, "As on vdeblur's command line: --lookahead 10 --no-deblur"},
    {"delay", PARAM_STRING, "Frames to hold back where there is no helper to tell"},
    {"columns", PARAM_STRING, "Width of the picture where the right of it is padding"},
    {"layout", PARAM_STRING, "444 keeps all colour; 420 is faster; else see layout.py"},
};

typedef struct {
    unsigned width, height;
    size_t bytes; /* of a picture */
    char *params[PARAMS];
    enum { NEW, RUNNING, BROKEN } state;
    pid_t helper;
    int socket, memory;
    uint8_t *slots; /* the last `delay` pictures and the current one, then ANSWERS by turns */
    size_t count;   /* of slots, without the answers */
    size_t taken;   /* pictures so far */
} Instance;

static void say(const char *what, const char *detail) {
    fprintf(stderr, "vdeblur: %s%s: frames pass through unchanged\n", what, detail);
}

static char *param(Instance *self, int index) {
    return self->params[index] ? self->params[index] : "";
}

/* Shared memory */

static int hold(Instance *self, long delay) {
    /* Make room for so many pictures; one that is there keeps it. */
    if (delay < 0 || delay > MAX_DELAY) return 0;
    size_t count = (size_t)delay + 1;
    if (self->slots && count == self->count) return 1;
    if (self->bytes > SIZE_MAX / (count + ANSWERS)) return 0;
    if (self->slots) munmap(self->slots, (self->count + ANSWERS) * self->bytes);
    self->slots = NULL;
    size_t size = (count + ANSWERS) * self->bytes;
    if (ftruncate(self->memory, (off_t)size)) return 0;
    void *there = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->memory, 0);
    if (there == MAP_FAILED) return 0;
    self->slots = there;
    self->count = count;
    return 1;
}

/* The helper */

static int above(int fd) {
    /* The same file, out of the way of the numbers that the helper expects. */
    if (fd < 0 || fd >= FIRST_OTHER) return fd;
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_OTHER);
    close(fd);
    return moved;
}

static void become_helper(int socket, int memory, char **python, char **program, int only_python) {
    /* Between fork and exec: nothing that could need a lock which another thread holds. */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* Ctrl-C and a closed terminal reach the whole group; the host may still want its pictures. */
    signal(SIGINT, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    dup2(socket, HELPER_SOCKET);
    dup2(memory, HELPER_MEMORY);
    dup2(STDERR_FILENO, STDOUT_FILENO); /* the host's output may be a video */
#ifdef SYS_close_range
    if (syscall(SYS_close_range, FIRST_OTHER, ~0U, 0))
#endif
        for (int fd = FIRST_OTHER; fd < 4096; fd++) close(fd);
    if (python[0][0]) execvp(python[0], python);
    if (!only_python) execvp(program[0], program);
    _exit(NOT_FOUND);
}

static int start(Instance *self) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) return 0;
    self->socket = above(pair[0]);
    int other = above(pair[1]);
    char width[16], height[16];
    snprintf(width, sizeof width, "%u", self->width);
    snprintf(height, sizeof height, "%u", self->height);
    char *wanted = getenv("VDEBLUR_PYTHON");
    int only_python = wanted && *wanted;
    char *interpreter = only_python ? wanted : VDEBLUR_PYTHON;
    char *options = param(self, OPTIONS), *columns = param(self, COLUMNS);
    char *layout = param(self, LAYOUT);
    char *python[] = {interpreter, "-m", "vdeblur", "ffmpeg-helper", width, height, columns, layout,
                      "--", options, NULL};
    char *program[] = {"vdeblur", "ffmpeg-helper", width, height, columns, layout, "--", options,
                       NULL};
    self->helper = self->socket < 0 || other < 0 ? -1 : fork();
    if (self->helper == 0) become_helper(other, self->memory, python, program, only_python);
    if (other >= 0) close(other);
    return self->helper > 0;
}

static int end_helper(Instance *self) {
    /* Hang up, wait, and use force at last; return how it ended, as waitpid has it. */
    int status = 0;
    if (self->socket >= 0) close(self->socket);
    self->socket = -1;
    if (self->helper <= 0) return 0;
    for (int waited = 0;; waited += 5) {
        pid_t done = waitpid(self->helper, &status, WNOHANG);
        if (done == self->helper || (done < 0 && errno != EINTR)) break;
        if (waited == PATIENCE_MS) kill(self->helper, SIGKILL);
        nanosleep(&(struct timespec){0, 5000000}, NULL);
    }
    self->helper = -1;
    return status;
}

static void give_up(Instance *self) {
    char detail[80];
    int begun = self->state == RUNNING;
    int status = end_helper(self);
    self->state = BROKEN;
    if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_FOUND && !begun) {
        say("the helper cannot be started", " (set VDEBLUR_PYTHON, or put vdeblur on the PATH)");
        return;
    }
    if (WIFSIGNALED(status))
        snprintf(detail, sizeof detail, " (signal %d)", WTERMSIG(status));
    else
        snprintf(detail, sizeof detail, " (exit code %d)", WEXITSTATUS(status));
    say(begun ? "the helper has ended" : "the helper did not start", detail);
}

static int tell(Instance *self, Message message) {
    const char *rest = (const char *)&message;
    for (size_t left = sizeof message; left;) {
        ssize_t sent = send(self->socket, rest, left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return 0;
        rest += sent;
        left -= (size_t)sent;
    }
    return 1;
}

static int hear(Instance *self, uint32_t kind, Message *message) {
    char *rest = (char *)message;
    for (size_t left = sizeof *message; left;) {
        ssize_t got = recv(self->socket, rest, left, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        rest += got;
        left -= (size_t)got;
    }
    return message->kind == kind;
}

static void begin(Instance *self) {
    /* Start the helper; without it, at least hold the pictures back as the host expects. */
    Message ready;
    if ((self->memory = above(memfd_create("vdeblur", MFD_CLOEXEC))) < 0) {
        self->state = BROKEN;
        say("there is no shared memory", "");
        return;
    }
    if (!start(self) || !hear(self, READY, &ready)) {
        give_up(self);
    } else if (!hold(self, ready.number)) {
        end_helper(self);
        self->state = BROKEN;
        say("there is not enough memory", "");
    } else {
        self->state = RUNNING;
    }
    if (self->state == BROKEN && *param(self, DELAY)) hold(self, atol(param(self, DELAY)));
}

/* The interface */

EXPORT int f0r_init(void) { return 1; }

EXPORT void f0r_deinit(void) {}

EXPORT void f0r_get_plugin_info(PluginInfo *info) {
    *info = (PluginInfo){
        .name = "vdeblur",
        .author = "The vdeblur developers",
        .plugin_type = FILTER,
        .color_model = BGRA8888,
        .frei0r_version = INTERFACE,
        .major_version = 0,
        .minor_version = 1,
        .num_params = PARAMS,
        .explanation = "Steadies and deblurs; pictures come out some frames late",
    };
}

EXPORT void f0r_get_param_info(ParamInfo *info, int index) {
    if (index >= 0 && index < PARAMS) *info = PARAM[index];
}

EXPORT void *f0r_construct(unsigned width, unsigned height) {
    Instance *self = calloc(1, sizeof *self);
    if (!self) return NULL;
    self->width = width;
    self->height = height;
    self->bytes = (size_t)width * height * 4;
    self->helper = -1;
    self->socket = self->memory = -1;
    return self;
}

static void forget(Instance *self) {
    /* As it was before the first picture. */
    end_helper(self);
    if (self->slots) munmap(self->slots, (self->count + ANSWERS) * self->bytes);
    if (self->memory >= 0) close(self->memory);
    self->slots = NULL;
    self->memory = -1;
    self->count = self->taken = 0;
    self->state = NEW;
}

EXPORT void f0r_destruct(void *instance) {
    Instance *self = instance;
    if (!self) return;
    forget(self);
    for (int index = 0; index < PARAMS; index++) free(self->params[index]);
    free(self);
}

EXPORT void f0r_set_param_value(void *instance, void *value, int index) {
    Instance *self = instance;
    const char *wanted = index >= 0 && index < PARAMS ? *(char **)value : NULL;
    if (!wanted || !strcmp(wanted, param(self, index))) return;
    free(self->params[index]);
    self->params[index] = strdup(wanted);
    forget(self); /* the next picture starts a helper with the new words */
}

EXPORT void f0r_get_param_value(void *instance, void *value, int index) {
    if (index >= 0 && index < PARAMS) *(char **)value = param(instance, index);
}

EXPORT void f0r_update(void *instance, double time, const uint32_t *in, uint32_t *out) {
    Instance *self = instance;
    if (self->state == NEW) begin(self);
    if (!self->slots) {
        memcpy(out, in, self->bytes);
        return;
    }
    size_t slot = self->taken % self->count;
    const uint8_t *answer = self->slots + slot * self->bytes; /* the first ones answer themselves */
    int due = self->taken >= EXCHANGE;
    memcpy(self->slots + slot * self->bytes, in, self->bytes);
    if (self->state == RUNNING) {
        Message message = {PICTURE, (uint32_t)slot, time};
        if (!tell(self, message) || (due && !hear(self, PICTURE, &message)))
            give_up(self);
        else if (due)
            answer = self->slots + (self->count + message.number) * self->bytes;
    }
    if (self->state != RUNNING) {
        size_t oldest = self->taken + 1 < self->count ? slot : (self->taken + 1) % self->count;
        answer = self->slots + oldest * self->bytes;
    }
    memcpy(out, answer, self->bytes);
    self->taken++;
}
