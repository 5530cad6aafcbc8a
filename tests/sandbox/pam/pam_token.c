/*
 * PAM module of the sandbox: hands the whole password to a program on its standard input.
 *
 *   auth required /path/pam_token.so /path/program argument…
 *
 * PAM_USER is the program's only variable besides PATH; exit status 0 lets the user in. Debian's pam_exec cannot be
 * used: it cuts the password at 511 bytes, and an RDS token signed with session credentials is longer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAM_SM_AUTH
#include <security/pam_ext.h>
#include <security/pam_modules.h>

static int write_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, data, length);
        if (written < 0 && errno != EINTR)
            return -1;
        if (written > 0) {
            data += written;
            length -= (size_t)written;
        }
    }
    return 0;
}

static void run_program(int argc, const char **argv, const char *user, int input)
{
    char user_variable[256], path_variable[] = "PATH=/usr/bin:/bin", *arguments[16], *environment[3];
    int count = 0;

    if (snprintf(user_variable, sizeof user_variable, "PAM_USER=%s", user) >= (int)sizeof user_variable)
        _exit(126);
    for (; count < argc && count < 15; count++)
        arguments[count] = (char *)argv[count];
    arguments[count] = NULL;
    environment[0] = user_variable;
    environment[1] = path_variable;
    environment[2] = NULL;
    if (dup2(input, STDIN_FILENO) < 0)
        _exit(126);
    execve(arguments[0], arguments, environment);
    _exit(127);
}

int pam_sm_authenticate(pam_handle_t *pam, int flags, int argc, const char **argv)
{
    const char *user = NULL, *token = NULL;
    struct sigaction by_default = {.sa_handler = SIG_DFL}, ignored = {.sa_handler = SIG_IGN}, child, broken_pipe;
    int pipe_ends[2], status = 0, result = PAM_SYSTEM_ERR;
    pid_t pid;

    (void)flags;
    if (argc < 1)
        return PAM_SERVICE_ERR;
    if (pam_get_user(pam, &user, NULL) != PAM_SUCCESS || user == NULL)
        return PAM_USER_UNKNOWN;
    if (pam_get_authtok(pam, PAM_AUTHTOK, &token, NULL) != PAM_SUCCESS || token == NULL)
        return PAM_AUTH_ERR;
    /* MariaDB runs this in threads: a program of another login must not hold our pipe open, it would never end. */
    if (pipe2(pipe_ends, O_CLOEXEC) != 0)
        return PAM_SYSTEM_ERR;
    /* The server may ignore SIGCHLD, which would make waitpid fail. */
    sigaction(SIGCHLD, &by_default, &child);
    sigaction(SIGPIPE, &ignored, &broken_pipe);
    pid = fork();
    if (pid == 0) {
        sigaction(SIGPIPE, &by_default, NULL);
        close(pipe_ends[1]);
        run_program(argc, argv, user, pipe_ends[0]);
    }
    close(pipe_ends[0]);
    if (pid > 0) {
        pid_t ended;
        write_all(pipe_ends[1], token, strlen(token));
        close(pipe_ends[1]);
        do
            ended = waitpid(pid, &status, 0);
        while (ended < 0 && errno == EINTR);
        result = ended == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? PAM_SUCCESS : PAM_AUTH_ERR;
    } else {
        close(pipe_ends[1]);
    }
    sigaction(SIGCHLD, &child, NULL);
    sigaction(SIGPIPE, &broken_pipe, NULL);
    return result;
}

int pam_sm_setcred(pam_handle_t *pam, int flags, int argc, const char **argv)
{
    (void)pam, (void)flags, (void)argc, (void)argv;
    return PAM_SUCCESS;
}
