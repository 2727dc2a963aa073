/* The compiled twin of shim.py, which stays the reference: same frames, same answers, same tests, a tenth of the start.
 * Linux, C11. compiler.py gives SOCKET, PYTHON, RUN_DIRECTORY, RELEASE and BUILD with -D. No locale, no stdio, no threads;
 * memory is never freed, for the process ends with the call. Frames: docs/reference/node-socket.md. It hands the call to
 * the node's socket and its reply back; when to run in process instead: cni specification 7.3. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef ADD_MS
#define ADD_MS 45000 /* 5 s more than the node's own */
#endif
#ifndef DEL_MS
#define DEL_MS 25000
#endif
#define OTHER_MS 10000
#define CONNECT_MS 2000
#define VERSION_INPUT_MS 200
#define MAX_INPUT (8u << 20)
#define COMMANDS "ADD, CHECK, DEL, GC, STATUS, VERSION"
#define NEWEST "1.1.0"
#define SUPPORTED "\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\""

_Static_assert(sizeof SOCKET <= sizeof ((struct sockaddr_un *)0)->sun_path, "the path of the socket is too long");
__attribute__((used)) static const char mark[] = "hands the call to the node's socket; build " BUILD;

extern char **environ;
static char *input; /* standard input, as far as it was read */
static size_t input_length;
static char version[24]; /* cniVersion by eye; empty: none that looks like one */

enum outcome { ANSWERED, IN_PROCESS, UNSENT, UNKNOWN };
static const char *why; /* of UNKNOWN */
static int is_unread;   /* the connection was reset */

static void put(int descriptor, const char *data, size_t length) {
    while (length) {
        ssize_t done = write(descriptor, data, length);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return; /* nobody listens */
        data += done, length -= (size_t)done;
    }
}

static char *append(char *end, char *limit, const char *text) {
    while (*text && end < limit) *end++ = *text++;
    return end;
}

/* The error object; its parts end with NULL. Gives the exit status. Signal handlers call it too. */
static int fail(int code, ...) {
    char text[1024], *end = text, *limit = text + sizeof text - 4, *from;
    int early = !strncmp(version, "0.1.", 4) || !strncmp(version, "0.2.", 4) || !strncmp(version, "0.3.", 4);
    const char *number = code == 11 ? (early ? "100" : "11") : code == 50 ? "50" : code == 4 ? "4" : code == 5 ? "5"
        : code == 6 ? "6" : "100";
    va_list parts;
    end = append(append(end, limit, "{\"cniVersion\":\""), limit, *version ? version : NEWEST);
    end = append(append(append(end, limit, "\",\"code\":"), limit, number), limit, ",\"msg\":\"");
    from = end;
    va_start(parts, code);
    for (const char *part; (part = va_arg(parts, const char *));) end = append(end, limit, part);
    va_end(parts);
    for (; from < end; from++)
        if (*from < ' ' || *from > '~' || *from == '"' || *from == '\\') *from = '?';
    end = append(end, text + sizeof text, "\"}");
    put(1, text, (size_t)(end - text));
    return 1;
}

static void interrupted(int number) {
    (void)number;
    _exit(fail(11, "interrupted before the node answered", (char *)NULL));
}

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void find_version(void) {
    static const char name[] = "\"cniVersion\"";
    char *at = memmem(input, input_length, name, sizeof name - 1), *end = input + input_length;
    size_t length = 0;
    if (!at) return;
    at += sizeof name - 1;
    while (at < end && strchr(" \t\r\n", *at)) at++;
    if (at == end || *at++ != ':') return;
    while (at < end && strchr(" \t\r\n", *at)) at++;
    if (at == end || *at++ != '"') return;
    while (at + length < end && length < sizeof version - 1 && (at[length] == '.' || (at[length] >= '0' && at[length] <= '9')))
        length++;
    if (!length || at + length >= end || at[length] != '"') return;
    memcpy(version, at, length);
}

/* To its end; with wait_ms, only what comes within such a time, or until it holds a version. Gives errno. */
static int read_input(int wait_ms) {
    size_t room = 0;
    for (;;) {
        struct pollfd ready = {.fd = 0, .events = POLLIN};
        if (wait_ms >= 0 && (*version || poll(&ready, 1, wait_ms) <= 0)) return 0;
        if (room - input_length < 65536) {
            char *larger = realloc(input, room = room * 2 + 131072);
            if (!larger) return ENOMEM;
            input = larger;
        }
        ssize_t length = read(0, input + input_length, 65536);
        if (length < 0 && errno == EINTR) continue;
        if (length < 0) return errno;
        input_length += (size_t)length;
        if (wait_ms >= 0) find_version();
        if (!length || input_length > MAX_INPUT) return 0;
    }
}

/* Whether the socket is ready before the deadline. */
static int await(int connection, short events, long long deadline) {
    struct pollfd ready = {.fd = connection, .events = events};
    long long left = deadline - now_ms();
    int found;
    while (left > 0 && (found = poll(&ready, 1, (int)left)) < 0 && errno == EINTR) left = deadline - now_ms();
    if (left > 0 && found > 0) return 1;
    why = "time is up";
    return 0;
}

static int receive(int connection, char *to, size_t length, long long deadline) {
    while (length) {
        if (!await(connection, POLLIN, deadline)) return 0;
        ssize_t done = recv(connection, to, length, MSG_DONTWAIT);
        if (done < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (done < 0) return is_unread = errno == ECONNRESET, why = "it broke the connection", 0;
        if (!done) return why = "the connection ended", 0;
        to += done, length -= (size_t)done;
    }
    return 1;
}

static int dial(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET};
    long long deadline = now_ms() + CONNECT_MS;
    int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    while (connect(connection, (struct sockaddr *)&address, sizeof address)) {
        struct timespec moment = {.tv_nsec = 10000000};
        if ((errno != EAGAIN && errno != EINTR) || now_ms() > deadline) return -1; /* EAGAIN: its backlog is full */
        nanosleep(&moment, NULL);
    }
    return connection;
}

static char *add_length(char *at, size_t length) {
    for (int shift = 24; shift >= 0; shift -= 8) *at++ = (char)(length >> shift);
    return at;
}

static uint32_t length_at(const unsigned char *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static int is_for_the_node(const char *variable) {
    return !strncmp(variable, "CNI_", 4) || !strncmp(variable, "CALICO_TRACE=", 13);
}

/* The call in its frame. NULL: no memory. */
static char *frame(const char *program, size_t *length) {
    size_t names = strlen(program), variables = 0;
    for (char **each = environ; *each; each++)
        if (is_for_the_node(*each)) variables += strlen(*each) + 1;
    if (variables) variables--; /* NUL between them */
    *length = 16 + names + variables + input_length;
    char *request = malloc(*length + 1), *at = request;
    if (!request) return NULL;
    memcpy(at, "CAL1", 4);
    at = add_length(add_length(add_length(at + 4, names), variables), input_length);
    at = (char *)memcpy(at, program, names) + names;
    for (char **each = environ; *each; each++)
        if (is_for_the_node(*each)) at = (char *)memcpy(at, *each, strlen(*each) + 1) + strlen(*each) + 1;
    if (input_length) memcpy(request + 16 + names + variables, input, input_length);
    return request;
}

static enum outcome send_frame(int connection, const char *request, size_t length, long long deadline) {
    const char *namespace = getenv("CNI_NETNS");
    int descriptor = namespace && *namespace ? open(namespace, O_RDONLY | O_CLOEXEC) : -1; /* absent is normal on DEL */
    union { struct cmsghdr header; char room[CMSG_SPACE(sizeof descriptor)]; } ancillary = {0};
    struct iovec part = {.iov_base = (char *)request, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    size_t sent = 0;
    if (descriptor >= 0) {
        ancillary.header = (struct cmsghdr){CMSG_LEN(sizeof descriptor), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(&ancillary.header), &descriptor, sizeof descriptor);
        message.msg_control = &ancillary, message.msg_controllen = sizeof ancillary.room;
    }
    while (sent < length) {
        ssize_t done = sendmsg(connection, &message, MSG_NOSIGNAL);
        if (done < 0 && (errno == EINTR || errno == EAGAIN)) {
            if (await(connection, POLLOUT, deadline)) continue;
            return sent ? UNKNOWN : UNSENT;
        }
        if (done < 0) return UNSENT; /* not to its end: nobody acts upon a part */
        sent += (size_t)done;
        part.iov_base = (char *)request + sent, part.iov_len = length - sent;
        message.msg_control = NULL, message.msg_controllen = 0; /* once is enough */
    }
    return ANSWERED;
}

static enum outcome ask(const char *program, long long deadline, int *status) {
    unsigned char head[12];
    char kind, *body;
    size_t length;
    int connection = dial();
    if (connection < 0) return UNSENT;
    char *request = frame(program, &length);
    if (!request) return UNSENT;
    enum outcome sent = send_frame(connection, request, length, deadline);
    if (sent != ANSWERED) return sent;
    if (!receive(connection, &kind, 1, deadline))
        return is_unread ? UNSENT : UNKNOWN; /* the kernel's word that bytes of the request were left unread */
    if (kind == 'F') return IN_PROCESS;
    if (kind != 'R') return why = "unknown reply", UNKNOWN;
    if (!receive(connection, (char *)head, sizeof head, deadline)) return UNKNOWN;
    size_t out = length_at(head + 4), err = length_at(head + 8);
    if (!(body = malloc(out + err + 1))) return why = "no memory for its answer", UNKNOWN;
    if (!receive(connection, body, out + err, deadline)) return UNKNOWN;
    signal(SIGTERM, SIG_IGN), signal(SIGINT, SIG_IGN); /* two answers would be none */
    put(2, body + out, err);
    put(1, body, out);
    *status = head[3];
    return ANSWERED;
}

/* Replaces this process; comes back only when that fails. */
static int run_in_process(const char *program) {
    char *arguments[] = {PYTHON, "-I", "-m", "calico_core.node.oneshot", RUN_DIRECTORY, (char *)program, NULL};
    int descriptor = memfd_create("stdin", 0);
    put(descriptor, input, input_length);
    lseek(descriptor, 0, SEEK_SET);
    dup2(descriptor, 0);
    execve(PYTHON, arguments, environ);
    return fail(11, "the node does not answer at " SOCKET ", and " PYTHON " cannot be run: ", strerror(errno), (char *)NULL);
}

int main(int count, char **arguments) {
    const char *name = count ? strrchr(arguments[0], '/') : NULL, *option = count == 2 ? arguments[1] : "";
    const char *command = getenv("CNI_COMMAND");
    int is_about = !strcmp(option, "-v") || !strcmp(option, "--version");
    const char *program = name ? name + 1 : count ? arguments[0] : "calico";
    int status = 0, error;
    for (int descriptor = 0; descriptor < 3; descriptor++) /* a closed one's number would go to the socket */
        if (fcntl(descriptor, F_GETFD) < 0) open("/dev/null", O_RDWR);
    signal(SIGPIPE, SIG_IGN);
    if (command && (!strcmp(command, "TEST") || !strcmp(command, "UPGRADE"))) /* what options become below */
        return fail(4, "CNI_COMMAND: '", command, "' is not one of " COMMANDS, (char *)NULL);
    if (!strcmp(option, "-t")) setenv("CNI_COMMAND", "TEST", 1); /* would an ADD with this configuration be served? */
    if (!strcmp(option, "-upgrade") || !strcmp(option, "--upgrade")) { /* here, where host-local's files are, and without input */
        setenv("CNI_COMMAND", "UPGRADE", 1);
        return run_in_process(program);
    }
    command = getenv("CNI_COMMAND");
    if (!command || !*command || is_about) {
        static const char about[] = "Calico CNI plugin " RELEASE "; CNI protocol versions supported: ";
        put(is_about ? 1 : 2, about, sizeof about - 1);
        for (const char *at = SUPPORTED "\n"; *at; at++)
            if (*at != '"') put(is_about ? 1 : 2, *at == ',' ? ", " : at, *at == ',' ? 2 : 1);
        return 0;
    }
    if (!strcmp(command, "VERSION")) {
        if (!isatty(0)) read_input(VERSION_INPUT_MS);
        put(1, "{\"cniVersion\":\"", 15);
        put(1, *version ? version : NEWEST, strlen(*version ? version : NEWEST));
        put(1, "\",\"supportedVersions\":[" SUPPORTED "]}", sizeof "\",\"supportedVersions\":[" SUPPORTED "]}" - 1);
        return 0;
    }
    signal(SIGTERM, interrupted), signal(SIGINT, interrupted);
    if ((error = read_input(-1))) return fail(5, "standard input cannot be read: ", strerror(error), (char *)NULL);
    if (input_length > MAX_INPUT) return fail(6, "standard input is longer than 8 MiB", (char *)NULL);
    find_version();
    if (!*version && input_length && !memmem(input, input_length, "\"cniVersion\"", 12)) memcpy(version, "0.1.0", 6);
    int is_status = !strcmp(command, "STATUS"), is_detach = !strcmp(command, "DEL");
    int within_ms = !strcmp(command, "ADD") ? ADD_MS : is_detach ? DEL_MS : OTHER_MS;
    switch (ask(program, now_ms() + within_ms, &status)) {
    case ANSWERED:
        return status;
    case UNSENT:
        if (is_status || !strcmp(command, "GC"))
            return fail(is_status ? 50 : 11, "the node does not answer at " SOCKET, (char *)NULL);
        break;
    case UNKNOWN: /* a detach is safe to repeat; of an attach nobody knows, and the runtime will detach */
        if (!is_detach)
            return fail(is_status ? 50 : 11, "the node did not answer: ", why, "; try again", (char *)NULL);
        break;
    case IN_PROCESS:
        break;
    }
    return run_in_process(program);
}
