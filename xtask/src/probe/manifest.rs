//! What were the checked-in BPF objects built from, and by what?

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const FILE: &str = "manifest.json";

/// `probe/prebuilt/manifest.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Over the names and contents of all files in `probe`, `prebuilt` left out, and over `dependencies`.
    pub(super) sources_sha256: String,
    /// Versions of the crates that the program is made of, from `Cargo.lock`.
    dependencies: BTreeMap<String, String>,
    /// What built the objects.
    pub(super) tools: Tools,
    /// SHA-256 of each object, by file name.
    pub(super) objects: BTreeMap<String, String>,
}

/// Versions of the tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tools {
    pub(super) rustc: String,
    pub(super) bpf_linker: String,
    /// `prebuilt` or `built`: the core library.
    pub(super) core: String,
}

impl fmt::Display for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} and a {} core", self.rustc, self.bpf_linker, self.core)
    }
}

impl Manifest {
    /// The manifest of the sources in `root` and the `objects` in `folder`.
    pub(super) fn of(root: &Path, folder: &Path, objects: &[String], tools: Tools) -> Result<Self> {
        let lock = String::from_utf8(read(&root.join("Cargo.lock"))?).context("Cargo.lock is not text")?;
        let dependencies = versions(&lock);
        ensure!(dependencies.contains_key("aya-ebpf"), "Cargo.lock does not name aya-ebpf");
        let mut hash = Sha256::new();
        for path in sources(root)? {
            let name = path.strip_prefix(root).context("a source outside the project")?;
            update(&mut hash, name.as_os_str().as_encoded_bytes());
            update(&mut hash, &read(&path)?);
        }
        for (name, version) in &dependencies {
            update(&mut hash, name.as_bytes());
            update(&mut hash, version.as_bytes());
        }
        let sources_sha256 = hex(&hash.finalize());
        let objects = objects.iter().map(|name| Ok((name.clone(), hex(&Sha256::digest(read(&folder.join(name))?)))));
        Ok(Self { sources_sha256, dependencies, tools, objects: objects.collect::<Result<_>>()? })
    }

    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        serde_json::from_slice(&read(&path)?).with_context(|| format!("{} is not a manifest", path.display()))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(folder.join(FILE), text).with_context(|| format!("cannot write {}", folder.join(FILE).display()))
    }
}

/// The length first, so that no two sequences of parts give the same bytes.
fn update(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_le_bytes());
    hash.update(part);
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

/// Everything that the compiler may read, in a fixed order.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![root.join("probe")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.ends_with("prebuilt") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The versions of the crates that go into the program.
fn versions(lock: &str) -> BTreeMap<String, String> {
    let value =
        |line: &str, key: &str| Some(line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"')?.to_owned());
    let lines: Vec<_> = lock.lines().collect();
    let pairs = lines.windows(2).filter_map(|pair| match pair {
        [first, second] => Some((value(first, "name")?, value(second, "version")?)),
        _ => None,
    });
    pairs.filter(|(name, _)| name.starts_with("aya-ebpf") || name == "bytemuck").collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_programs_crates() {
        let lock = "version = 4\n\n[[package]]\nname = \"aya\"\nversion = \"0.14.0\"\n\n\
                    [[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\ndependencies = [\n \"aya-ebpf-cty\",\n]\n\n\
                    [[package]]\nname = \"bytemuck\"\nversion = \"1.25.0\"\n";
        let expected = [("aya-ebpf", "0.2.1"), ("bytemuck", "1.25.0")];
        assert_eq!(versions(lock), expected.map(|(name, version)| (name.to_owned(), version.to_owned())).into());
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let of = |parts: &[&str]| {
            let mut hash = Sha256::new();
            for part in parts {
                update(&mut hash, part.as_bytes());
            }
            hex(&hash.finalize())
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_eq!(of(&["a"]).len(), 64);
    }
}
