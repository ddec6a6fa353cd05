//! Who we are on this machine: host, user and process, as restic records them.

/// Name of this host.
pub(crate) fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Name of the user, by the environment; the number if that says nothing.
pub(crate) fn username() -> String {
    std::env::var("USER")
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| uid().to_string())
}

/// Number of the user.
pub(crate) fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Number of the group.
pub(crate) fn gid() -> u32 {
    rustix::process::getgid().as_raw()
}

/// Whether a process of this host is gone for sure.
pub(crate) fn process_is_gone(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return false;
    };
    rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
}
