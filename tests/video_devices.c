/* Two video devices where the kernel has none: a library to preload (LD_PRELOAD).

   Opening the file VDEBLUR_WEBCAM opens a webcam as Video4Linux2 has it: YUYV, 320x240, 30 frames/s,
   streamed through memory that driver and program share. Each frame is grey, of the brightness
   16 + twice its number; after VDEBLUR_WEBCAM_FRAMES of them the camera is unplugged. Opening
   /dev/video0 to write opens what the module v4l2loopback makes; frames land in the file
   VDEBLUR_LOOPBACK. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { WIDTH = 320, HEIGHT = 240, BYTES = 2 * WIDTH * HEIGHT, BUFFERS = 4, RATE = 30 };
enum { PAGE = 4096, ROOM = (BYTES + PAGE - 1) / PAGE * PAGE };
enum { MICROSECOND = 1000, SECOND = 1000000000 };

static int webcam = -1, loopback = -1;
static unsigned queue[BUFFERS], queued, sent;
static struct timespec started;

static int opened(const char *path, int flags, mode_t mode) {
    int (*next)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    const char *wanted = getenv("VDEBLUR_WEBCAM"), *kept = getenv("VDEBLUR_LOOPBACK");
    if (wanted && !strcmp(path, wanted)) {
        webcam = memfd_create("webcam", MFD_CLOEXEC);
        if (ftruncate(webcam, (off_t)BUFFERS * ROOM)) return -1;
        queued = sent = 0;
        return webcam;
    }
    if (kept && !strcmp(path, "/dev/video0"))
        return loopback = next(kept, O_WRONLY | O_CREAT | O_APPEND, 0600);
    return next(path, flags, mode);
}

#define OPEN(name)                                  \
    int name(const char *path, int flags, ...) {    \
        va_list rest;                               \
        va_start(rest, flags);                      \
        mode_t mode = va_arg(rest, mode_t);         \
        va_end(rest);                               \
        return opened(path, flags, mode);           \
    }
OPEN(open)
OPEN(open64)

static int fail(int why) {
    errno = why;
    return -1;
}

static void describe(struct v4l2_pix_format *pix) {
    pix->width = WIDTH;
    pix->height = HEIGHT;
    pix->pixelformat = V4L2_PIX_FMT_YUYV;
    pix->field = V4L2_FIELD_NONE;
    pix->bytesperline = 2 * WIDTH;
    pix->sizeimage = BYTES;
}

static int filmed(struct v4l2_buffer *buffer) {
    /* Wait for the next frame and hand it over. */
    const char *most = getenv("VDEBLUR_WEBCAM_FRAMES");
    if (!queued) return fail(EAGAIN);
    if (most && sent >= strtoul(most, NULL, 10)) return fail(ENODEV);
    long long due = (long long)started.tv_nsec + (long long)sent * SECOND / RATE;
    struct timespec when = {started.tv_sec + due / SECOND, due % SECOND};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL)) {}
    unsigned index = queue[0];
    memmove(queue, queue + 1, --queued * sizeof *queue);
    unsigned char *picture = malloc(BYTES);
    if (!picture) return fail(ENOMEM);
    for (int i = 0; i < BYTES; i++) picture[i] = i % 2 ? 128 : (unsigned char)(16 + 2 * sent);
    ssize_t written = pwrite(webcam, picture, BYTES, (off_t)index * ROOM);
    free(picture);
    if (written != BYTES) return -1;
    buffer->index = index;
    buffer->bytesused = BYTES;
    buffer->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
    buffer->timestamp = (struct timeval){when.tv_sec, when.tv_nsec / MICROSECOND};
    buffer->sequence = sent++;
    return 0;
}

static int film(unsigned long request, void *given) {
    struct v4l2_capability *can = given;
    struct v4l2_fmtdesc *known = given;
    struct v4l2_input *input = given;
    struct v4l2_buffer *buffer = given;
    struct v4l2_streamparm *rate = given;
    switch (request) {
    case VIDIOC_QUERYCAP:
        can->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    case VIDIOC_ENUM_FMT:
        if (known->index) return fail(EINVAL);
        known->pixelformat = V4L2_PIX_FMT_YUYV;
        return 0;
    case VIDIOC_G_INPUT:
        *(int *)given = 0;
        return 0;
    case VIDIOC_ENUMINPUT:
        if (input->index) return fail(EINVAL);
        input->type = V4L2_INPUT_TYPE_CAMERA;
        return 0;
    case VIDIOC_G_FMT:
    case VIDIOC_S_FMT:
    case VIDIOC_TRY_FMT:
        describe(&((struct v4l2_format *)given)->fmt.pix);
        return 0;
    case VIDIOC_G_PARM:
    case VIDIOC_S_PARM:
        rate->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
        rate->parm.capture.timeperframe = (struct v4l2_fract){1, RATE};
        return 0;
    case VIDIOC_REQBUFS:
        ((struct v4l2_requestbuffers *)given)->count = BUFFERS;
        return 0;
    case VIDIOC_QUERYBUF:
        buffer->length = BYTES;
        buffer->m.offset = buffer->index * ROOM;
        return 0;
    case VIDIOC_QBUF:
        queue[queued++] = buffer->index;
        return 0;
    case VIDIOC_DQBUF:
        return filmed(buffer);
    case VIDIOC_STREAMON:
        return clock_gettime(CLOCK_MONOTONIC, &started);
    case VIDIOC_STREAMOFF:
        return 0;
    default:
        return fail(ENOTTY);
    }
}

static int show(unsigned long request, void *given) {
    struct v4l2_capability *can = given;
    switch (request) {
    case VIDIOC_QUERYCAP:
        strcpy((char *)can->driver, "v4l2 loopback");
        strcpy((char *)can->card, "loopback of the tests");
        can->capabilities = can->device_caps = V4L2_CAP_VIDEO_OUTPUT;
        return 0;
    case VIDIOC_G_FMT:
    case VIDIOC_S_FMT:
        return 0;
    default:
        return fail(ENOTTY);
    }
}

int ioctl(int fd, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *given = va_arg(rest, void *);
    va_end(rest);
    if (fd >= 0 && fd == webcam) return film(request, given);
    if (fd >= 0 && fd == loopback) return show(request, given);
    int (*next)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    return next(fd, request, given);
}
