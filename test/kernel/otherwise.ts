/**
 * What is otherwise on Linux 6.1 than on the kernel that the tests were written on. These tests fail there, and one that does not is a
 * failure.
 */
export const otherwise: readonly { file: string; test: string; why: string }[] = [];
