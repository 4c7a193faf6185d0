//! Makes tracefs visible where nobody has mounted it, without changing the host.

use std::{
    io,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Where tracefs belongs (Documentation/trace/ftrace.rst), and where aya looks for it.
pub(super) const PLACE: &str = "/sys/kernel/tracing";

/// Runs `work`; where `mount_tracefs`, on a thread with a mount namespace of its own in which tracefs is mounted. The
/// namespace, and with it the mount, goes when the thread ends.
pub(super) fn with<T: Send>(mount_tracefs: bool, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    if !mount_tracefs {
        return Ok(work());
    }
    let around = mount_point(Path::new(PLACE))?;
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            // What is mounted below it must not reach the host's namespace.
            mount(None::<&str>, &around, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some("tracefs"), PLACE, Some("tracefs"), MsFlags::empty(), None::<&str>)?;
            Ok(work())
        });
        work.join().unwrap_or_else(|_| Err(io::Error::other("the thread with the mount namespace panicked")))
    })
}

/// The mount in which `place` lies. In a chroot the root need not be one.
fn mount_point(place: &Path) -> io::Result<PathBuf> {
    let mounts = procfs::process::Process::myself().and_then(|own| own.mountinfo()).map_err(io::Error::other)?;
    let around = mounts.into_iter().map(|mount| mount.mount_point).filter(|point| place.starts_with(point));
    around.max_by_key(|point| point.as_os_str().len()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no mount is visible around {}", place.display()))
    })
}
