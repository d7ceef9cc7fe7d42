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
#include <sys/resource.h>
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

/* The bare reading of a file whose size is not known. */
static size_t read_whole(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	check(fd, path);
	size_t length = 0;
	ssize_t count;
	while ((count = read(fd, buffer + length, size - length)) > 0)
		length += count;
	check(count, "read");
	close(fd);
	return length;
}

/* The mount table. Names are taken as they stand: the bench makes none that would be escaped. */
static char table[8 << 20];
static struct {
	int id, parent;
	char *point;
} mounts[65536];

static int read_mounts(void)
{
	table[read_whole("/proc/self/mountinfo", table, sizeof table - 1)] = '\0';
	int count = 0;
	for (char *line = table, *end; *line != '\0'; line = end + 1) {
		end = strchr(line, '\n');
		mounts[count].id = strtol(line, &line, 10);
		mounts[count].parent = strtol(line, &line, 10);
		/* Two blanks, and what lies between them. */
		for (int blanks = 0; blanks < 3; blanks++)
			line = strchr(line, ' ') + 1;
		mounts[count++].point = line;
		*strchr(line, ' ') = '\0';
	}
	return count;
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

/* Onto "/", and off with what is mounted on the old one. */
static void switch_move(const char *path)
{
	int root = open_directory(path), old = open_directory("/"), count = read_mounts(), old_id = -1;
	for (int i = 0; i < count; i++)
		if (strcmp(mounts[i].point, "/") == 0)
			old_id = mounts[i].id;
	check(fchdir(root), "fchdir");
	check(mount(".", "/", NULL, MS_MOVE, NULL), "move");
	check(chroot("."), "chroot");
	check(fchdir(old), "fchdir");
	for (int i = 0; i < count; i++) {
		const char *point = mounts[i].point + 1;
		if (mounts[i].parent != old_id || strcmp(mounts[i].point, path) == 0)
			continue;
		check(mount(NULL, point, NULL, MS_SLAVE | MS_REC, NULL), point);
		check(umount2(point, MNT_DETACH | UMOUNT_NOFOLLOW), point);
	}
	check(fchdir(root), "fchdir");
	close(root);
	close(old);
}

/* pivot N PUT_OLD: again and again in one namespace; the bind mount that makes a new root of the old one is not timed. */
static double pivot(char **arguments)
{
	check(mount("/", "/self", NULL, MS_BIND | MS_REC, NULL), "/self");
	double start = now();
	switch_by(arguments[0], "/self");
	return now() - start;
}

/* move N: the same. */
static double move(char **arguments)
{
	(void)arguments;
	check(mount("/", "/self", NULL, MS_BIND | MS_REC, NULL), "/self");
	double start = now();
	switch_move("/self");
	return now() - start;
}

/* chroot N ROOT: the entry; the return is not timed. */
static double enter_chroot(char **arguments)
{
	int old = open_directory("/");
	double start = now();
	check(chroot(arguments[0]), "chroot");
	check(chdir("/"), "chdir");
	double spent = now() - start;
	check(fchdir(old), "fchdir");
	check(chroot("."), "chroot");
	close(old);
	return spent;
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

/* read N FILE. */
static double read_file(char **arguments)
{
	double start = now();
	read_whole(arguments[0], table, sizeof table);
	return now() - start;
}

/* mounts N DIRECTORY COUNT: mounts a tmpfs there, and so many in it. Not timed. */
static double make_mounts(char **arguments)
{
	char path[4096];
	check(mount("tmpfs", arguments[0], "tmpfs", 0, NULL), arguments[0]);
	for (int i = 1; i < atoi(arguments[1]); i++) {
		snprintf(path, sizeof path, "%s/%d", arguments[0], i);
		check(mkdir(path, 0755), path);
		check(mount("tmpfs", path, "tmpfs", 0, NULL), path);
	}
	return 0;
}

/* unmount N DIRECTORY: the directory, and all below it. */
static double unmount_all(char **arguments)
{
	size_t length = strlen(arguments[0]);
	double start = now();
	for (int i = read_mounts() - 1; i >= 0; i--) {
		const char *point = mounts[i].point;
		if (strncmp(point, arguments[0], length) == 0 && (point[length] == '/' || point[length] == '\0'))
			check(umount2(point, UMOUNT_NOFOLLOW), point);
	}
	return now() - start;
}

/* resident N: the bytes of memory that this process has in use. */
static double resident(char **arguments)
{
	(void)arguments;
	char text[128];
	text[read_whole("/proc/self/statm", text, sizeof text - 1)] = '\0';
	return strtol(strchr(text, ' '), NULL, 10) * (double)sysconf(_SC_PAGESIZE);
}

/* From the start of a process to its end. */
static double run(char **arguments, struct rusage *usage)
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
	check(wait4(pid, &status, 0, usage), "wait4");
	double spent = now() - start;
	posix_spawn_file_actions_destroy(&actions);
	if (status != 0) {
		fprintf(stderr, "floor: %s ended with wait status %d\n", arguments[0], status);
		exit(1);
	}
	return spent;
}

/* spawn N COMMAND ARG... */
static double spawn(char **arguments)
{
	struct rusage usage;
	return run(arguments, &usage);
}

/* peak N COMMAND ARG...: the most bytes of memory that it, or a process that it waited for, had in use at once. */
static double peak(char **arguments)
{
	struct rusage usage;
	run(arguments, &usage);
	return usage.ru_maxrss * 1024.0;
}

static const struct {
	const char *name;
	double (*run)(char **arguments);
} commands[] = {
	{ "pivot", pivot },
	{ "move", move },
	{ "chroot", enter_chroot },
	{ "detached", detached },
	{ "detached-close", detached_close },
	{ "namespace", in_namespace },
	{ "mounted", mounted },
	{ "read", read_file },
	{ "mounts", make_mounts },
	{ "unmount", unmount_all },
	{ "resident", resident },
	{ "spawn", spawn },
	{ "peak", peak },
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
