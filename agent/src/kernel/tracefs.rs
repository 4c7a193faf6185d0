//! Makes tracefs visible where nobody has mounted it, without changing the host.

use std::{io, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Where tracefs belongs (Documentation/trace/ftrace.rst), and where aya looks for it.
const PLACE: &str = "/sys/kernel/tracing";

/// Runs `attach`; where `mount_tracefs`, on a thread with a mount namespace of its own in which tracefs is mounted. The
/// namespace, and with it the mount, goes when the thread ends.
pub(super) fn with<T: Send>(mount_tracefs: bool, attach: impl FnOnce() -> T + Send) -> io::Result<T> {
    if !mount_tracefs {
        return Ok(attach());
    }
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            // Nothing of what follows may reach the host's namespace.
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some("tracefs"), PLACE, Some("tracefs"), MsFlags::empty(), None::<&str>)?;
            Ok(attach())
        });
        work.join().unwrap_or_else(|_| Err(io::Error::other("the attaching thread panicked")))
    })
}
