// The libc functions behind our symbols: name, system call number for a libc that lacks it, signature. Variadic functions are
// given the form in which their arguments arrive. Included by next.hpp (declaration) and next.cpp (resolution), hence no guard.

// sockets
ICEPATH_NEXT(socket, SYS_socket, int(int, int, int));
ICEPATH_NEXT(listen, SYS_listen, int(int, int));
ICEPATH_NEXT(accept, SYS_accept, int(int, sockaddr*, socklen_t*));
ICEPATH_NEXT(accept4, SYS_accept4, int(int, sockaddr*, socklen_t*, int));
ICEPATH_NEXT(connect, SYS_connect, int(int, const sockaddr*, socklen_t));
ICEPATH_NEXT(shutdown, SYS_shutdown, int(int, int));
ICEPATH_NEXT(getsockopt, SYS_getsockopt, int(int, int, int, void*, socklen_t*));
ICEPATH_NEXT(setsockopt, SYS_setsockopt, int(int, int, int, const void*, socklen_t));

// data
ICEPATH_NEXT(read, SYS_read, ssize_t(int, void*, size_t));
ICEPATH_NEXT(readv, SYS_readv, ssize_t(int, const iovec*, int));
ICEPATH_NEXT(preadv2, no_nr, ssize_t(int, const iovec*, int, off_t, int));
ICEPATH_NEXT(write, SYS_write, ssize_t(int, const void*, size_t));
ICEPATH_NEXT(writev, SYS_writev, ssize_t(int, const iovec*, int));
ICEPATH_NEXT(pwritev2, no_nr, ssize_t(int, const iovec*, int, off_t, int));
ICEPATH_NEXT(send, no_nr, ssize_t(int, const void*, size_t, int));
ICEPATH_NEXT(sendto, SYS_sendto, ssize_t(int, const void*, size_t, int, const sockaddr*, socklen_t));
ICEPATH_NEXT(sendmsg, SYS_sendmsg, ssize_t(int, const msghdr*, int));
ICEPATH_NEXT(sendmmsg, SYS_sendmmsg, int(int, mmsghdr*, unsigned, int));
ICEPATH_NEXT(recv, no_nr, ssize_t(int, void*, size_t, int));
ICEPATH_NEXT(recvfrom, SYS_recvfrom, ssize_t(int, void*, size_t, int, sockaddr*, socklen_t*));
ICEPATH_NEXT(recvmsg, SYS_recvmsg, ssize_t(int, msghdr*, int));
ICEPATH_NEXT(recvmmsg, SYS_recvmmsg, int(int, mmsghdr*, unsigned, int, timespec*));
ICEPATH_NEXT(__read_chk, no_nr, ssize_t(int, void*, size_t, size_t));
ICEPATH_NEXT(__recv_chk, no_nr, ssize_t(int, void*, size_t, size_t, int));
ICEPATH_NEXT(__recvfrom_chk, no_nr, ssize_t(int, void*, size_t, size_t, int, sockaddr*, socklen_t*));
ICEPATH_NEXT(sendfile, SYS_sendfile, ssize_t(int, int, off_t*, size_t));
ICEPATH_NEXT(splice, SYS_splice, ssize_t(int, off64_t*, int, off64_t*, size_t, unsigned));
ICEPATH_NEXT(aio_read, no_nr, int(aiocb*));
ICEPATH_NEXT(aio_write, no_nr, int(aiocb*));
ICEPATH_NEXT(lio_listio, no_nr, int(int, aiocb* const*, int, sigevent*));

// waiting
ICEPATH_NEXT(poll, SYS_poll, int(pollfd*, nfds_t, int));
ICEPATH_NEXT(__poll_chk, no_nr, int(pollfd*, nfds_t, int, size_t));
ICEPATH_NEXT(ppoll, no_nr, int(pollfd*, nfds_t, const timespec*, const sigset_t*));
ICEPATH_NEXT(__ppoll_chk, no_nr, int(pollfd*, nfds_t, const timespec*, const sigset_t*, size_t));
ICEPATH_NEXT(select, SYS_select, int(int, fd_set*, fd_set*, fd_set*, timeval*));
ICEPATH_NEXT(pselect, no_nr, int(int, fd_set*, fd_set*, fd_set*, const timespec*, const sigset_t*));
ICEPATH_NEXT(epoll_create, SYS_epoll_create, int(int));
ICEPATH_NEXT(epoll_create1, SYS_epoll_create1, int(int));
ICEPATH_NEXT(epoll_ctl, SYS_epoll_ctl, int(int, int, int, epoll_event*));
ICEPATH_NEXT(epoll_wait, SYS_epoll_wait, int(int, epoll_event*, int, int));
ICEPATH_NEXT(epoll_pwait, no_nr, int(int, epoll_event*, int, int, const sigset_t*));
ICEPATH_NEXT(epoll_pwait2, no_nr, int(int, epoll_event*, int, const timespec*, const sigset_t*));

// descriptors
ICEPATH_NEXT(close, SYS_close, int(int));
ICEPATH_NEXT(close_range, SYS_close_range, int(unsigned, unsigned, int));
ICEPATH_NEXT(dup, SYS_dup, int(int));
ICEPATH_NEXT(dup2, SYS_dup2, int(int, int));
ICEPATH_NEXT(dup3, SYS_dup3, int(int, int, int));
ICEPATH_NEXT(fcntl, SYS_fcntl, int(int, int, long));
ICEPATH_NEXT(fcntl64, SYS_fcntl, int(int, int, long));
ICEPATH_NEXT(ioctl, SYS_ioctl, int(int, unsigned long, void*));
ICEPATH_NEXT(fdopen, no_nr, FILE*(int, const char*));
ICEPATH_NEXT(vdprintf, no_nr, int(int, const char*, va_list));
ICEPATH_NEXT(__vdprintf_chk, no_nr, int(int, int, const char*, va_list));

// processes
ICEPATH_NEXT(_Fork, SYS_fork, pid_t());
ICEPATH_NEXT(prctl, SYS_prctl, int(int, unsigned long, unsigned long, unsigned long, unsigned long));
ICEPATH_NEXT(clone, no_nr, int(int (*)(void*), void*, int, void*, void*, void*, void*));
ICEPATH_NEXT(execve, SYS_execve, int(const char*, char* const*, char* const*));
ICEPATH_NEXT(execvp, no_nr, int(const char*, char* const*));
ICEPATH_NEXT(execvpe, no_nr, int(const char*, char* const*, char* const*));
ICEPATH_NEXT(fexecve, no_nr, int(int, char* const*, char* const*));
ICEPATH_NEXT(execveat, SYS_execveat, int(int, const char*, char* const*, char* const*, int));
ICEPATH_NEXT(posix_spawn, no_nr, int(pid_t*, const char*, const posix_spawn_file_actions_t*, const posix_spawnattr_t*, char* const*, char* const*));
ICEPATH_NEXT(posix_spawnp, no_nr, int(pid_t*, const char*, const posix_spawn_file_actions_t*, const posix_spawnattr_t*, char* const*, char* const*));
ICEPATH_NEXT(posix_spawn_file_actions_adddup2, no_nr, int(posix_spawn_file_actions_t*, int, int));
ICEPATH_NEXT(_exit, SYS_exit_group, void(int));
ICEPATH_NEXT(abort, no_nr, void());

// signals
ICEPATH_NEXT(sigaction, no_nr, int(int, const struct sigaction*, struct sigaction*));
ICEPATH_NEXT(signal, no_nr, sighandler(int, sighandler));
ICEPATH_NEXT(sysv_signal, no_nr, sighandler(int, sighandler));
ICEPATH_NEXT(sigset, no_nr, sighandler(int, sighandler));

// system calls by number
ICEPATH_NEXT(syscall, no_nr, long(long, long, long, long, long, long, long));
