/* WebSocket clients that cost as little as clients can: thousands in one thread, each frame counted, nothing kept.
 *
 *   load HOST PORT CLIENTS STALLED KIND < commands > figures
 *
 * KIND: treewire, plain (ws, websockets, the bare sender) or socketio. The first line of standard input is the head of
 * the HTTP request, with "|" for line ends; the second the frames to send after the handshake, with a TAB between them.
 * The last STALLED clients never read. Then "go" starts a window and "stop" ends it: one line of JSON with
 *
 *   frames, bytes, changes   what arrived; changes: versions that the frames of a treewire gateway span, else frames
 *   p50, p99                 microseconds from the stamp "t<nanoseconds, CLOCK_MONOTONIC>" in a frame to its arrival;
 *                            one client in SAMPLE looks for them, so that reading is not what is measured
 *   behind                   how many reading clients got less than the frontmost one, by more than SLACK frames
 *   closed                   connections that the server ended
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SCRAP = 1 << 20, BINS = 200000, BIN_US = 25, SLACK = 2, EVENTS = 512, BATCH = 16, SAMPLE = 16 };

struct client {
    int fd, got_head, got_first, dead;
    long frames, version;
    size_t held, room;
    char *rest;
};

static struct client *clients;
static int count, stalled, firsts, heads, closed_by_peer, measuring;
static long frames_seen, bytes_seen, changes_seen, stamps, bins[BINS];
static int treewire, socketio;
static char scrap[SCRAP];

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void put(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n < 0) return;
        data += n, size -= n;
    }
}

/* A client's text frame; a mask of zeros masks nothing. */
static void say(int fd, const char *text, size_t size) {
    char frame[8 + 8192] = {(char)0x81};
    size_t n = 2;
    if (size < 126) frame[1] = (char)(0x80 | size);
    else frame[1] = (char)(0x80 | 126), frame[2] = (char)(size >> 8), frame[3] = (char)size, n = 4;
    memset(frame + n, 0, 4);
    memcpy(frame + n + 4, text, size);
    put(fd, frame, n + 4 + size); /* in one piece, as clients do */
}

static long number_after(const char *body, size_t size, const char *key) {
    const char *at = memmem(body, size, key, strlen(key));
    return at ? strtol(at + strlen(key), NULL, 10) : -1;
}

static void latency(int64_t sent, int64_t now) {
    long bin = (now - sent) / 1000 / BIN_US;
    bins[bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin]++;
    stamps++;
}

static void take(struct client *c, unsigned char first, char *body, size_t size, int64_t now) {
    int plain = !(first & 0x40);
    if ((first & 15) == 9) return; /* a ping: nobody here waits long enough to need a pong */
    if ((first & 15) == 8) {
        c->dead = 1;
        return;
    }
    if (socketio) {
        if (size == 1 && body[0] == '2') {
            say(c->fd, "3", 1);
            return;
        }
        if (size < 2 || body[0] != '4' || body[1] != '2') {
            if (size >= 2 && body[0] == '4' && body[1] == '0' && !c->got_first) c->got_first = 1, firsts++;
            return;
        }
    } else if (treewire && plain) {
        if (size > 20 && !memcmp(body, "{\"type\":\"heartbeat\"", 19)) {
            char text[96];
            long n = number_after(body, size, "\"n\":");
            say(c->fd, text, sprintf(text, "{\"type\":\"ack\",\"n\":%ld,\"subscriptions\":{}}", n));
            return;
        }
        if (size > 20 && !memcmp(body, "{\"type\":\"snapshot\"", 18)) {
            c->version = number_after(body, size, "\"version\":");
            if (!c->got_first) c->got_first = 1, firsts++;
            return;
        }
        if (size < 16 || memcmp(body, "{\"type\":\"delta\"", 15)) return;
    } else if (treewire && !c->got_first) {
        c->got_first = 1, firsts++;
    }
    c->frames++;
    if (!measuring) return;
    frames_seen++, bytes_seen += size;
    if (treewire && plain) {
        long to = number_after(body, size, "\"to\":"), from = number_after(body, size, "\"from\":");
        changes_seen += to - from;
        c->version = to;
    } else {
        changes_seen++;
    }
    if (plain && (c - clients) % SAMPLE == 0) {
        for (char *at = body, *end = body + size; (at = memmem(at, end - at, "\"t", 2)); at += 2)
            if (at[2] >= '1' && at[2] <= '9') latency(strtoll(at + 2, NULL, 10), now);
    }
}

/* Consumes whole frames; returns how many bytes are left over. */
static size_t cut(struct client *c, char *data, size_t size, int64_t now) {
    size_t at = 0;
    if (!c->got_head) {
        char *end = memmem(data, size, "\r\n\r\n", 4);
        if (!end) return size;
        if (memcmp(data, "HTTP/1.1 101", 12)) {
            fprintf(stderr, "refused: %.*s\n", (int)(size < 300 ? size : 300), data);
            exit(1);
        }
        c->got_head = 1, heads++;
        at = end + 4 - data;
    }
    while (size - at >= 2) {
        unsigned char *f = (unsigned char *)data + at;
        size_t length = f[1] & 127, skip = 2;
        if (length == 126) {
            if (size - at < 4) break;
            length = (size_t)f[2] << 8 | f[3], skip = 4;
        } else if (length == 127) {
            if (size - at < 10) break;
            length = 0, skip = 10;
            for (int i = 2; i < 10; i++) length = length << 8 | f[i];
        }
        if (size - at < skip + length) break;
        take(c, f[0], (char *)f + skip, length, now);
        at += skip + length;
    }
    return size - at;
}

static void receive(struct client *c) {
    for (;;) {
        if (c->held >= SCRAP / 2) {
            fprintf(stderr, "a frame is longer than this client can hold\n");
            exit(1);
        }
        memcpy(scrap, c->rest, c->held);
        ssize_t n = read(c->fd, scrap + c->held, SCRAP - c->held);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            closed_by_peer++, c->dead = 1;
            close(c->fd);
            return;
        }
        size_t size = c->held + n, left = cut(c, scrap, size, now_ns());
        if (left > c->room) {
            c->room = left * 2;
            c->rest = realloc(c->rest, c->room);
        }
        memmove(c->rest ? c->rest : scrap, scrap + size - left, left);
        c->held = left;
        if (n < SCRAP / 4) return;
    }
}

static void connect_one(struct client *c, struct sockaddr_in *to, const char *request, size_t size, int reads) {
    int one = 1, small = 4096;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    if (!reads) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (connect(c->fd, (struct sockaddr *)to, sizeof *to)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    put(c->fd, request, size);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static long percentile(double share) {
    long want = (long)(stamps * share), seen = 0;
    for (long i = 0; i < BINS; i++)
        if ((seen += bins[i]) > want) return i * BIN_US + BIN_US / 2;
    return 0;
}

static void wait_for(int poll, int *what, int wanted, double seconds) {
    struct epoll_event events[EVENTS];
    int64_t until = now_ns() + (int64_t)(seconds * 1e9);
    while (*what < wanted && now_ns() < until) {
        int n = epoll_wait(poll, events, EVENTS, 100);
        for (int i = 0; i < n; i++)
            if (events[i].data.ptr && !((struct client *)events[i].data.ptr)->dead) receive(events[i].data.ptr);
    }
    if (*what < wanted) {
        fprintf(stderr, "only %d of %d clients got an answer\n", *what, wanted);
        exit(1);
    }
}

int main(int argc, char **argv) {
    static char request[8192], hello[8192], line[64];
    if (argc != 6 || !fgets(request, sizeof request, stdin) || !fgets(hello, sizeof hello, stdin)) {
        fprintf(stderr, "usage: load HOST PORT CLIENTS STALLED treewire|plain|socketio\n");
        return 2;
    }
    treewire = !strcmp(argv[5], "treewire"), socketio = !strcmp(argv[5], "socketio");
    count = atoi(argv[3]), stalled = atoi(argv[4]);
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    size_t size = 0;
    for (char *p = request; *p && *p != '\n'; p++) {
        if (*p == '|') scrap[size++] = '\r', scrap[size++] = '\n';
        else scrap[size++] = *p;
    }
    memcpy(request, scrap, size);
    hello[strcspn(hello, "\n")] = 0;

    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    clients = calloc(count, sizeof *clients);
    int poll = epoll_create1(EPOLL_CLOEXEC), total = count;
    for (int i = 0; i < total; i++) {
        struct client *c = clients + i;
        c->rest = malloc(c->room = 256);
        connect_one(c, &to, request, size, i < total - stalled);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &event);
        if (i % BATCH != BATCH - 1 && i != total - 1) continue;
        wait_for(poll, &heads, i + 1, 30);
        for (int k = i - i % BATCH; k <= i; k++) {
            char copy[8192], *at = copy, *one;
            strcpy(copy, hello);
            while ((one = strsep(&at, "\t")))
                if (*one) say(clients[k].fd, one, strlen(one));
        }
        if (treewire || socketio) wait_for(poll, &firsts, i + 1, 60);
    }
    for (int i = total - stalled; i < total; i++) epoll_ctl(poll, EPOLL_CTL_DEL, clients[i].fd, NULL);
    printf("ready\n");
    fflush(stdout);

    struct epoll_event in = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(poll, EPOLL_CTL_ADD, 0, &in);
    for (;;) {
        int n = epoll_wait(poll, events, EVENTS, 1000);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (c) {
                if (!c->dead) receive(c);
                continue;
            }
            ssize_t got = read(0, line, sizeof line - 1);
            if (got <= 0) return 0;
            line[got] = 0;
            if (!strncmp(line, "go", 2)) {
                memset(bins, 0, sizeof bins);
                frames_seen = bytes_seen = changes_seen = stamps = 0;
                for (int k = 0; k < total; k++) clients[k].frames = 0;
                measuring = 1;
            } else {
                long front = 0;
                int behind = 0;
                measuring = 0;
                for (int k = 0; k < total - stalled; k++)
                    if (clients[k].frames > front) front = clients[k].frames;
                for (int k = 0; k < total - stalled; k++) behind += clients[k].frames < front - SLACK;
                printf("{\"frames\":%ld,\"bytes\":%ld,\"changes\":%ld,\"p50\":%ld,\"p99\":%ld,\"behind\":%d,"
                       "\"closed\":%d}\n",
                       frames_seen, bytes_seen, changes_seen, percentile(0.5), percentile(0.99), behind,
                       closed_by_peer);
                fflush(stdout);
            }
        }
    }
}
