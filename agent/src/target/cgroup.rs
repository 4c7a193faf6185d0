//! Which control group counts a process's memory, and what does it say? See the kernel's
//! `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst`.

use std::{
    io,
    num::ParseIntError,
    path::{Path, PathBuf},
};

use procfs::process::MountInfo;
use thiserror::Error;

use crate::limits::{GroupFacts, GroupLimit, GroupStat};

/// `memory.limit_in_bytes` of a group without a limit is the largest number of pages, in bytes: far above this.
const UNLIMITED: u64 = 1 << 62;
/// Groups above each other at most.
const DEEPEST: usize = 256;

/// A process's group in the hierarchy that counts memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    version: u8,
    path: String,
}

/// What the kernel wrote is not what was expected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum CgroupError {
    /// A line of `/proc/PID/cgroup`.
    #[error("a line of /proc/PID/cgroup is not `number:controllers:path`")]
    Line,
    /// A group that is not below what is mounted here.
    #[error(
        "the control group {path} cannot be seen from here, so its limits are not known: run beamscope on the host, or mount \
         its hierarchy"
    )]
    Outside {
        /// The group.
        path: String,
    },
    /// A figure.
    #[error("{file} of the control group {path} holds no figure")]
    Figure {
        /// The group.
        path: String,
        /// The file.
        file: &'static str,
    },
    /// A file.
    #[error("{file} of the control group {path} cannot be read: {cause}")]
    Unreadable {
        /// The group.
        path: String,
        /// The file.
        file: &'static str,
        /// Why.
        cause: io::ErrorKind,
    },
}

/// The group in `/proc/PID/cgroup`. Where version 1 has the controller of memory, version 2 has none. `None`: memory is not
/// counted by group.
pub(super) fn group(text: &str) -> Result<Option<Group>, CgroupError> {
    let mut second = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(CgroupError::Line);
        };
        if !path.starts_with('/') || number.parse::<u32>().is_err() {
            return Err(CgroupError::Line);
        }
        if controllers.split(',').any(|controller| controller == "memory") {
            return Ok(Some(Group { version: 1, path: path.to_owned() }));
        }
        if controllers.is_empty() && number == "0" {
            second = Some(Group { version: 2, path: path.to_owned() });
        }
    }
    Ok(second)
}

impl Group {
    /// The folder of the group in a file system that is mounted here, and those of the groups above it that can be seen, each
    /// with its path.
    fn folders(&self, mounts: &[MountInfo]) -> Result<Vec<(String, PathBuf)>, CgroupError> {
        let Self { version, path } = self;
        let outside = || CgroupError::Outside { path: path.clone() };
        // A group beside or above our own root is written with dots.
        if path.split('/').any(|part| part == "..") {
            return Err(outside());
        }
        let is_ours = |mount: &&MountInfo| match version {
            1 => mount.fs_type == "cgroup" && mount.super_options.contains_key("memory"),
            _ => mount.fs_type == "cgroup2",
        };
        // In a container, a part of the hierarchy is mounted, and its root says which.
        let below = |mount: &MountInfo| {
            let rest = path.strip_prefix(mount.root.trim_end_matches('/'))?;
            (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_matches('/').to_owned())
        };
        let seen = mounts.iter().filter(is_ours).find_map(|mount| Some((mount, below(mount)?)));
        let (mount, rest) = seen.ok_or_else(outside)?;
        let top = mount.root.trim_end_matches('/');
        let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
        let folders = (0..=parts.len()).rev().take(DEEPEST).map(|count| {
            let below: String = parts.iter().take(count).flat_map(|part| ["/", part]).collect();
            let folder = mount.mount_point.join(below.trim_start_matches('/'));
            let name = format!("{top}{below}");
            (if name.is_empty() { "/".to_owned() } else { name }, folder)
        });
        Ok(folders.collect())
    }

    /// What the group says. `None`: there is no limit and no account, as of the root of version 2.
    pub(super) fn facts(
        &self,
        mounts: &[MountInfo],
        read: &dyn Fn(&Path) -> io::Result<String>,
        defects: &mut Vec<String>,
    ) -> Option<GroupFacts> {
        let folders = match self.folders(mounts) {
            Ok(folders) => folders,
            // Who is in the root of a hierarchy has no group of its own.
            Err(_) if self.path == "/" => return None,
            Err(error) => {
                defects.push(error.to_string());
                return None;
            }
        };
        let mut files = Files { read, defects };
        let names = if self.version == 1 { &FIRST } else { &SECOND };
        // Where a group does not count memory, the next one above it that does counts it too.
        let (at, current) =
            (0..).zip(&folders).find_map(|(at, folder)| Some((at, files.figure(folder, names.current)?)))?;
        let counting = folders.get(at)?;
        let above = folders.get(at..).unwrap_or_default();
        let (stat, hierarchical) = files.stat(counting, self.version);
        let limits = above.iter().filter_map(|folder| {
            let max = files.figure(folder, names.max)?;
            Some(GroupLimit { path: folder.0.clone(), max, current: files.figure(folder, names.current) })
        });
        // The nearest of equal ones: it is the one that will be hit.
        let mut tightest = limits.reduce(|near, far| if far.max < near.max { far } else { near });
        // Groups that cannot be seen from here count as well.
        if let Some(max) = hierarchical
            && tightest.as_ref().is_none_or(|tightest| max < tightest.max)
        {
            tightest = Some(GroupLimit { path: "a group above what can be seen".to_owned(), max, current: None });
        }
        let events = files.keyed(counting, names.events);
        let event = |name| events.iter().find(|(key, _)| key == name).map(|(_, count)| *count);
        Some(GroupFacts {
            version: self.version,
            path: counting.0.clone(),
            current: Some(current),
            max: files.figure(counting, names.max),
            high: names.high.and_then(|file| files.figure(counting, file)),
            swap_current: names.swap_current.and_then(|file| files.figure(counting, file)).or(stat.1),
            swap_max: names.swap_max.and_then(|file| files.figure(counting, file)),
            tightest,
            stat: stat.0,
            limit_hits: names.hits.map_or_else(|| event("max"), |file| files.figure(counting, file)),
            oom: event("oom"),
            oom_kill: event("oom_kill"),
        })
    }
}

/// The files of a version of the interface.
struct Names {
    current: &'static str,
    max: &'static str,
    high: Option<&'static str>,
    swap_current: Option<&'static str>,
    swap_max: Option<&'static str>,
    events: &'static str,
    /// How often the limit was hit, where that is not one of the events.
    hits: Option<&'static str>,
}

const FIRST: Names = Names {
    current: "memory.usage_in_bytes",
    max: "memory.limit_in_bytes",
    high: None,
    swap_current: None,
    swap_max: None,
    events: "memory.oom_control",
    hits: Some("memory.failcnt"),
};

const SECOND: Names = Names {
    current: "memory.current",
    max: "memory.max",
    high: Some("memory.high"),
    swap_current: Some("memory.swap.current"),
    swap_max: Some("memory.swap.max"),
    events: "memory.events",
    hits: None,
};

/// The files of groups, read one by one.
struct Files<'a> {
    read: &'a dyn Fn(&Path) -> io::Result<String>,
    defects: &'a mut Vec<String>,
}

impl Files<'_> {
    /// The text of a file; `None`: the kernel has none there, or it cannot be read.
    fn text(&mut self, (path, folder): &(String, PathBuf), file: &'static str) -> Option<String> {
        match (self.read)(&folder.join(file)) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let (path, cause) = (path.clone(), error.kind());
                self.say(&CgroupError::Unreadable { path, file, cause });
                None
            }
        }
    }

    /// The figure in a file; `None`: there is no limit, or no file.
    fn figure(&mut self, folder: &(String, PathBuf), file: &'static str) -> Option<u64> {
        let text = self.text(folder, file)?;
        figure(&text).unwrap_or_else(|_| self.refuse(folder, file))
    }

    /// The figures in a file by their names.
    fn keyed(&mut self, folder: &(String, PathBuf), file: &'static str) -> Vec<(String, u64)> {
        let Some(text) = self.text(folder, file) else { return Vec::new() };
        keyed(&text).unwrap_or_else(|| self.refuse(folder, file))
    }

    fn refuse<T: Default>(&mut self, (path, _): &(String, PathBuf), file: &'static str) -> T {
        self.say(&CgroupError::Figure { path: path.clone(), file });
        T::default()
    }

    /// Says it once: some files are read twice.
    fn say(&mut self, error: &CgroupError) {
        let defect = error.to_string();
        if !self.defects.contains(&defect) {
            self.defects.push(defect);
        }
    }

    /// `memory.stat` with what is swapped out, and the tightest limit that it knows of.
    fn stat(&mut self, folder: &(String, PathBuf), version: u8) -> ((GroupStat, Option<u64>), Option<u64>) {
        let figures = self.keyed(folder, "memory.stat");
        let of = |name: &str| figures.iter().find(|(key, _)| key == name).map(|(_, bytes)| *bytes);
        if version == 2 {
            let stat = GroupStat {
                anon: of("anon"),
                file: of("file"),
                shmem: of("shmem"),
                sock: of("sock"),
                kernel: of("kernel"),
                slab: of("slab"),
            };
            return ((stat, None), None);
        }
        let kernel = self.figure(folder, "memory.kmem.usage_in_bytes");
        let stat = GroupStat {
            anon: of("total_rss"),
            file: of("total_cache"),
            shmem: of("total_shmem"),
            sock: None,
            kernel,
            slab: None,
        };
        ((stat, of("total_swap")), of("hierarchical_memory_limit").filter(|max| *max < UNLIMITED))
    }
}

/// A figure, or that there is none: `max`, or what stands for it.
fn figure(text: &str) -> Result<Option<u64>, ParseIntError> {
    match text.trim_end() {
        "max" => Ok(None),
        digits => Ok(Some(digits.parse()?).filter(|bytes| *bytes < UNLIMITED)),
    }
}

/// Lines of a name and a figure; `None`: one is something else.
fn keyed(text: &str) -> Option<Vec<(String, u64)>> {
    let pair = |line: &str| {
        let (name, figure) = line.split_once(' ')?;
        Some((name.to_owned(), figure.trim().parse().ok()?))
    };
    text.lines().map(pair).collect()
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
