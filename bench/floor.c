/*
 * The floor under the numbers: the system calls that mounttree makes, made from C, with nothing checked and nothing undone.
 *
 * It reads commands from standard input, a line each, in fields that a tab separates: a name, how many times, arguments. It
 * answers each with a line of so many times in nanoseconds. peer.ts answers to the same commands; run.ts asks the two in turn.
 *
 * With an argument, it first makes that directory its root.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What the headers of an older libc do not have. Numbers from 424 on are the same everywhere. */
#define NR_open_tree 428
#define NR_mount_setattr 442
#define TREE_CLONE 1
#define TREE_RECURSIVE 0x8000
#define TREE_EMPTY_PATH 0x1000

struct attributes {
	uint64_t set, clear, propagation, userns;
};

extern char **environ;

static void check(long result, const char *what)
{
	if (result != -1)
		return;
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int open_directory(const char *path)
{
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	check(fd, path);
	return fd;
}

/* As mounttree with putOld "stacked". */
static void switch_stacked(const char *path)
{
	int root = open_directory(path), old = open_directory("/");
	check(fchdir(root), "fchdir");
	check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	check(fchdir(old), "fchdir");
	check(mount(NULL, ".", NULL, MS_SLAVE | MS_REC, NULL), "mount");
	check(umount2(".", MNT_DETACH), "umount2");
	check(fchdir(root), "fchdir");
	close(root);
	close(old);
}

/* The steps of the Go original, between its checks. */
static void switch_directory(const char *path)
{
	char directory[4096];
	snprintf(directory, sizeof directory, "%s/.pivot_rootXXXXXX", path);
	if (mkdtemp(directory) == NULL)
		check(-1, directory);
	check(syscall(SYS_pivot_root, path, directory), "pivot_root");
	const char *old = strrchr(directory, '/');
	check(chdir("/"), "chdir");
	check(mount("", old, "", MS_PRIVATE | MS_REC, ""), "mount");
	check(umount2(old, MNT_DETACH), "umount2");
	check(rmdir(old), "rmdir");
}

static void switch_by(const char *put_old, const char *path)
{
	(strcmp(put_old, "stacked") == 0 ? switch_stacked : switch_directory)(path);
}

/* pivot N PUT_OLD: again and again in one namespace; the bind mount that makes a new root of the old one is not timed. */
static double pivot(char **arguments)
{
	check(mount("/", "/self", NULL, MS_BIND | MS_REC, NULL), "/self");
	double start = now();
	switch_by(arguments[0], "/self");
	return now() - start;
}

/* detached N ROOT, detached-close N ROOT: the entry; with closing the tree that was entered before, or without. */
static int tree = -1;

static double enter_detached(const char *path, int closing)
{
	int old = open_directory("/");
	int before = tree;
	struct attributes private = { .propagation = MS_PRIVATE };
	double start = now();
	int root = open_directory(path);
	tree = syscall(NR_open_tree, root, "", TREE_CLONE | O_CLOEXEC | TREE_RECURSIVE | TREE_EMPTY_PATH);
	check(tree, "open_tree");
	check(syscall(NR_mount_setattr, tree, "", TREE_RECURSIVE | TREE_EMPTY_PATH, &private, sizeof private), "mount_setattr");
	check(fchdir(tree), "fchdir");
	check(chroot("."), "chroot");
	close(root);
	if (closing && before != -1)
		close(before);
	double spent = now() - start;
	check(fchdir(old), "fchdir");
	check(chroot("."), "chroot");
	close(old);
	if (!closing && before != -1)
		close(before);
	return spent;
}

static double detached(char **arguments)
{
	return enter_detached(arguments[0], 0);
}

static double detached_close(char **arguments)
{
	return enter_detached(arguments[0], 1);
}

/* namespace N ROOT none|stacked|directory: a new mount namespace, "/" made a slave, the switch, and back. */
static double in_namespace(char **arguments)
{
	static int home = -1;
	if (home == -1)
		check(home = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC), "ns/mnt");
	double start = now();
	check(unshare(CLONE_NEWNS), "unshare");
	check(mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL), "mount");
	if (strcmp(arguments[1], "none") != 0)
		switch_by(arguments[1], arguments[0]);
	check(setns(home, CLONE_NEWNS), "setns");
	return now() - start;
}

/* mounted N PATH: one call, taken from a thousand. */
static double mounted(char **arguments)
{
	struct statx answer;
	double start = now();
	for (int i = 0; i < 1000; i++)
		check(statx(AT_FDCWD, arguments[0], AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, 0, &answer), arguments[0]);
	return (now() - start) / 1000;
}

/* read N FILE: the bare reading of a file whose size is not known. */
static double read_file(char **arguments)
{
	static char buffer[4 << 20];
	double start = now();
	int fd = open(arguments[0], O_RDONLY | O_CLOEXEC);
	check(fd, arguments[0]);
	ssize_t length = 0, count;
	while ((count = read(fd, buffer + length, sizeof buffer - length)) > 0)
		length += count;
	check(count, "read");
	close(fd);
	return now() - start;
}

/* spawn N COMMAND ARG...: from the start of a process to its end. */
static double spawn(char **arguments)
{
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	pid_t pid;
	int status;
	double start = now();
	errno = posix_spawnp(&pid, arguments[0], &actions, NULL, arguments, environ);
	check(errno == 0 ? 0 : -1, arguments[0]);
	check(waitpid(pid, &status, 0), "waitpid");
	double spent = now() - start;
	posix_spawn_file_actions_destroy(&actions);
	if (status != 0) {
		fprintf(stderr, "floor: %s ended with wait status %d\n", arguments[0], status);
		exit(1);
	}
	return spent;
}

static const struct {
	const char *name;
	double (*run)(char **arguments);
} commands[] = {
	{ "pivot", pivot },
	{ "detached", detached },
	{ "detached-close", detached_close },
	{ "namespace", in_namespace },
	{ "mounted", mounted },
	{ "read", read_file },
	{ "spawn", spawn },
};

int main(int argc, char **argv)
{
	if (argc > 1)
		switch_stacked(argv[1]);
	char *line = NULL;
	size_t size = 0;
	while (getline(&line, &size, stdin) > 0) {
		char *fields[64] = { NULL };
		int count = 0;
		line[strcspn(line, "\n")] = '\0';
		for (char *field = strtok(line, "\t"); field != NULL && count < 63; field = strtok(NULL, "\t"))
			fields[count++] = field;
		double (*run)(char **) = NULL;
		for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
			if (count >= 2 && strcmp(commands[i].name, fields[0]) == 0)
				run = commands[i].run;
		if (run == NULL) {
			fprintf(stderr, "floor: unknown command\n");
			return 1;
		}
		for (int times = atoi(fields[1]); times > 0; times--)
			printf("%.1f%c", run(fields + 2), times == 1 ? '\n' : ' ');
		fflush(stdout);
	}
	return 0;
}
