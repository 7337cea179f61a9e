/* The floor: one thread that shakes hands as cheaply as can be, and writes a finished frame to each socket, one call
 * each. It has no state, no cursors, no slow clients and no protocol; nothing that has can be cheaper.
 *
 *   floor RATE SIZE     frames a second, bytes of a payload; prints its port, and begins when it is sent a line
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
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static int open_sockets[65536], opened;

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    double rate = atof(argv[1]);
    int size = atoi(argv[2]), one = 1;
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    int inlet = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    if (bind(inlet, (struct sockaddr *)&at, sizeof at) || listen(inlet, 4096)) return perror("listen"), 1;
    getsockname(inlet, (struct sockaddr *)&at, &length);
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    long every = (long)(1e9 / rate);
    struct itimerspec when = {{every / 1000000000, every % 1000000000}, {every / 1000000000, every % 1000000000}};
    struct epoll_event event = {.events = EPOLLIN}, events[512];
    event.data.fd = inlet, epoll_ctl(poll, EPOLL_CTL_ADD, inlet, &event);
    event.data.fd = timer, epoll_ctl(poll, EPOLL_CTL_ADD, timer, &event);
    event.data.fd = 0, epoll_ctl(poll, EPOLL_CTL_ADD, 0, &event);
    static char scrap[1 << 16], frame[1 << 16];
    static const char head[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    for (;;) {
        int n = epoll_wait(poll, events, 512, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == inlet) {
                while ((fd = accept4(inlet, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    event.data.fd = fd, epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
                }
            } else if (fd == timer) {
                uint64_t times;
                if (read(timer, &times, sizeof times) != sizeof times) continue;
                struct timespec t;
                clock_gettime(CLOCK_MONOTONIC, &t);
                while (times--) {
                    char *body = frame + (size < 126 ? 2 : 4);
                    memset(body, ' ', size);
                    int used = sprintf(body, "{\"type\":\"delta\",\"name\":\"t%lld\"",
                                       t.tv_sec * 1000000000LL + t.tv_nsec);
                    body[used] = ' ', body[size - 1] = '}';
                    frame[0] = (char)0x81;
                    if (size < 126) frame[1] = (char)size;
                    else frame[1] = 126, frame[2] = (char)(size >> 8), frame[3] = (char)size;
                    for (int k = 0; k < opened; k++)
                        if (write(open_sockets[k], frame, body + size - frame) < 0 && errno != EAGAIN) {
                            close(open_sockets[k]);
                            open_sockets[k--] = open_sockets[--opened];
                        }
                }
            } else if (fd == 0) {
                timerfd_settime(timer, 0, &when, NULL);
                epoll_ctl(poll, EPOLL_CTL_DEL, 0, NULL);
            } else if (read(fd, scrap, sizeof scrap) <= 0) {
                epoll_ctl(poll, EPOLL_CTL_DEL, fd, NULL);
            } else if (write(fd, head, sizeof head - 1) > 0) {
                epoll_ctl(poll, EPOLL_CTL_DEL, fd, NULL);
                open_sockets[opened++] = fd;
            }
        }
    }
}
