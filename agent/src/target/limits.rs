//! Which limits does the kernel say of a process?

use std::{fs, io, path::Path};

use procfs::process::{MountInfos, Process};
use thiserror::Error;

use super::cgroup;
use crate::limits::LimitFacts;

/// A file of `/proc/PID` is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
enum LimitError {
    /// A line is missing.
    #[error("there is no line `{name}` in it")]
    Missing {
        /// How the line begins.
        name: &'static str,
    },
    /// It holds something else.
    #[error("its line `{name}` holds no figure")]
    Figure {
        /// How the line begins.
        name: &'static str,
    },
}

/// Reads the limits of the process whose folder in `/proc` is `folder`. What cannot be read is left out, and said.
pub(super) fn take(folder: &str, defects: &mut Vec<String>) -> LimitFacts {
    let read = |name: &str| fs::read_to_string(Path::new(folder).join(name));
    let mut facts = LimitFacts::default();
    let mut say = |name: &str, why: &dyn std::fmt::Display| {
        defects.push(format!("limits of the process are missing: {folder}/{name}: {why}"));
    };
    match open_files(&Path::new(folder).join("fd")) {
        Ok(count) => facts.open_files = Some(count),
        Err(error) => say("fd", &error),
    }
    match read("limits") {
        Ok(text) => {
            for (name, into) in
                [("Max open files", &mut facts.most_open_files), ("Max address space", &mut facts.most_address_space)]
            {
                match limit(&text, name) {
                    Ok(most) => *into = most,
                    Err(error) => say("limits", &error),
                }
            }
        }
        Err(error) => say("limits", &error),
    }
    match read("status").map(|text| kilobytes(&text, "VmSize:")) {
        Ok(Ok(bytes)) => facts.address_space = Some(bytes),
        Ok(Err(error)) => say("status", &error),
        Err(error) => say("status", &error),
    }
    let group = match read("cgroup").map(|text| cgroup::group(&text)) {
        Ok(Ok(group)) => group,
        Ok(Err(error)) => {
            say("cgroup", &error);
            None
        }
        // A kernel without control groups.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            say("cgroup", &error);
            None
        }
    };
    if let Some(group) = group {
        // The group is named as we see it, so it is found where we have it mounted.
        match Process::myself().and_then(|own| own.mountinfo()) {
            Ok(MountInfos(mounts)) => facts.group = group.facts(&mounts, &|path| fs::read_to_string(path), defects),
            Err(error) => defects.push(format!("what is mounted here cannot be read: {error}")),
        }
    }
    facts
}

/// How many files are open. Since Linux 6.2 the folder's size says so.
fn open_files(folder: &Path) -> io::Result<u64> {
    match fs::metadata(folder)?.len() {
        0 => Ok(fs::read_dir(folder)?.count() as u64),
        count => Ok(count),
    }
}

/// The soft limit in the line of `/proc/PID/limits` that begins with `name`. `None`: unlimited.
fn limit(text: &str, name: &'static str) -> Result<Option<u64>, LimitError> {
    match first_word(text, name)? {
        "unlimited" => Ok(None),
        digits => digits.parse().ok().map(Some).ok_or(LimitError::Figure { name }),
    }
}

/// Bytes in the line of `/proc/PID/status` that begins with `name`, which has them in units of 1024.
fn kilobytes(text: &str, name: &'static str) -> Result<u64, LimitError> {
    let units = first_word(text, name)?.parse::<u64>().ok();
    units.and_then(|units| units.checked_mul(1024)).ok_or(LimitError::Figure { name })
}

fn first_word<'a>(text: &'a str, name: &'static str) -> Result<&'a str, LimitError> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)).ok_or(LimitError::Missing { name })?;
    rest.split_whitespace().next().ok_or(LimitError::Figure { name })
}

#[cfg(test)]
mod tests {
    use procfs::process::LimitValue;
    use proptest::prelude::*;

    use super::*;

    const FILES: &str = "Max open files";
    /// Of a process on Linux 6.18.
    const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max stack size            8388608              unlimited            bytes     
Max open files            20000                65536                files     
Max address space         unlimited            unlimited            bytes     
Max nice priority         0                    0                    
";

    #[test]
    fn soft_limits_are_read() {
        assert_eq!(limit(LIMITS, FILES), Ok(Some(20000)));
        assert_eq!(limit(LIMITS, "Max address space"), Ok(None));
        assert_eq!(limit(LIMITS, "Max processes"), Err(LimitError::Missing { name: "Max processes" }));
        assert_eq!(limit("Max open files", FILES), Err(LimitError::Figure { name: FILES }));
        assert_eq!(limit("Max open files  -1  files", FILES), Err(LimitError::Figure { name: FILES }));
    }

    #[test]
    fn sizes_are_in_units_of_1024() {
        let of = |text| kilobytes(text, "VmSize:");
        assert_eq!(of("Name:\tbeam.smp\nVmPeak:\t 5 kB\nVmSize:\t 2211092 kB\n"), Ok(2_211_092 * 1024));
        assert_eq!(of("VmSize:\t 18446744073709551615 kB"), Err(LimitError::Figure { name: "VmSize:" }));
        // A kernel thread has none.
        assert_eq!(of("Name:\tkthreadd\n"), Err(LimitError::Missing { name: "VmSize:" }));
    }

    #[test]
    fn our_own_limits() {
        let mut defects = Vec::new();
        let before = take("/proc/self", &mut defects);
        let files: Vec<_> = (0..20).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = take("/proc/self", &mut defects);
        drop(files);
        assert_eq!(defects, Vec::<String>::new());
        // Other tests open and close files at the same time.
        assert!(after.open_files.unwrap() >= 20 + 3, "{after:?}");
        let LimitValue::Value(soft) = Process::myself().unwrap().limits().unwrap().max_open_files.soft_limit else {
            panic!("the suite runs with a limit on open files");
        };
        assert_eq!(before.most_open_files, Some(soft));
        assert!(before.address_space.is_some_and(|bytes| bytes > 1 << 20), "{before:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String, soft: u64, hard: u64) {
            let line = format!("Max open files            {soft:<20} {hard:<20} files     \n");
            prop_assert_eq!(limit(&format!("{line}{text}"), FILES), Ok(Some(soft)));
            let said = kilobytes(&format!("VmSize:{text}"), "VmSize:");
            let digits = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
            prop_assert_eq!(said.ok(), digits.and_then(|units| units.checked_mul(1024)));
        }
    }
}
