//! Which node is it that a process runs?

use std::{
    fs::{self, OpenOptions},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::{fcntl::OFlag, sys::utsname::uname};
use object::{Architecture, Object as _, ObjectSymbol as _};
use procfs::process::Process;

use super::{
    elf::{Elf, ElfAddress, ModuleFile, bytes_at},
    maps::Maps,
    memory::ReadMemory,
    node::{self, Libc},
};
use crate::{
    mapping::Mapping,
    recording::{Emulator, Node},
};

/// Longest text file that is read of a node.
const LONGEST_TEXT: u64 = 64 << 10;

/// Most release folders that are looked into.
const MOST_RELEASES: usize = 64;

/// Gathers the facts. What cannot be found out is left out: no fact is needed to look at the node's memory.
pub(super) fn gather(
    process: &Process,
    folder: &str,
    maps: &Maps,
    beam: &ModuleFile,
    memory: &impl ReadMemory,
) -> Node {
    let elf = beam.elf().ok();
    let symbol = |name| text_symbol(elf.as_ref()?, name);
    let places = Places::of(process, folder);
    let erts_version = symbol("etp_erts_version")
        .or_else(|| node::erts_version(&beam.path))
        .or_else(|| node::erts_version(places.binaries.as_deref()?))
        .or_else(|| places.erts_version());
    let otp_release = symbol("etp_otp_release")
        .or_else(|| places.otp_release())
        .or_else(|| node::otp_release(erts_version.as_deref()?));
    Node {
        pid: u32::try_from(process.pid()).unwrap_or_default(),
        name: places.name(),
        otp_release,
        erts_version,
        emulator: Some(emulator(elf.as_ref(), maps)),
        arch: elf.as_ref().map_or_else(String::new, |elf| architecture(elf).to_owned()),
        libc: libc(folder, maps, memory),
        kernel: uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default(),
        container: process
            .cgroups()
            .ok()
            .and_then(|groups| node::container(groups.0.iter().map(|group| group.pathname.as_str()))),
    }
}

/// What the VM's executable says of itself.
pub(super) fn of_executable(beam: &ModuleFile) -> Node {
    let elf = beam.elf().ok();
    let symbol = |name| text_symbol(elf.as_ref()?, name);
    let erts_version = symbol("etp_erts_version").or_else(|| node::erts_version(&beam.path));
    let otp_release = symbol("etp_otp_release").or_else(|| node::otp_release(erts_version.as_deref()?));
    let compiling = elf.as_ref().and_then(is_compiling);
    let emulator = compiling.map(|compiling| if compiling { Emulator::Jit } else { Emulator::Emu });
    Node { otp_release, erts_version, emulator, ..Node::default() }
}

/// What the command line and the environment say, and where the node's files are.
struct Places {
    /// `/proc/PID`
    folder: PathBuf,
    arguments: Vec<String>,
    /// `ROOTDIR`, in the node's mount namespace.
    root: Option<String>,
    /// `BINDIR`, in the node's mount namespace.
    binaries: Option<String>,
}

impl Places {
    fn of(process: &Process, folder: &str) -> Self {
        let folder = PathBuf::from(folder);
        let mut arguments = words(&fs::read(folder.join("cmdline")).unwrap_or_default());
        // `erlexec` puts the contents of the file in the place of the flag; release scripts leave `-vm_args` standing,
        // and a shell that starts `beam.smp` itself can leave both.
        let files: Vec<_> = ["-args_file", "-vm_args"].iter().filter_map(|name| node::flag(&arguments, name)).collect();
        let more: Vec<_> = files
            .into_iter()
            .filter_map(|path| text(&folder, path))
            .flat_map(|text| node::arguments_in_file(&text))
            .collect();
        arguments.extend(more);
        let environment = process.environ().unwrap_or_default();
        let variable =
            |name: &str| environment.get(std::ffi::OsStr::new(name)).map(|value| value.to_string_lossy().into_owned());
        let root = node::flag(&arguments, "-root").map(str::to_owned).or_else(|| variable("ROOTDIR"));
        Self { root, binaries: variable("BINDIR"), arguments, folder }
    }

    fn name(&self) -> Option<String> {
        node::name(&self.arguments, self.host().as_deref())
    }

    /// The name of the host as the node sees it.
    fn host(&self) -> Option<String> {
        let namespace = |folder: &Path| fs::read_link(folder.join("ns/uts")).ok();
        if namespace(&self.folder) == namespace(Path::new("/proc/self")) {
            uname().ok().map(|names| names.nodename().to_string_lossy().into_owned())
        } else {
            text(&self.folder, "/etc/hostname").and_then(|text| text.lines().next().map(|line| line.trim().to_owned()))
        }
    }

    fn erts_version(&self) -> Option<String> {
        let started = text(&self.folder, &format!("{}/releases/start_erl.data", self.root.as_ref()?))?;
        node::version(started.split_ascii_whitespace().next()?)
    }

    fn otp_release(&self) -> Option<String> {
        let releases = format!("{}/releases", self.root.as_ref()?);
        let started = text(&self.folder, &format!("{releases}/start_erl.data"));
        if let Some(release) = started.and_then(|text| node::start_release(&text)) {
            return Some(release);
        }
        // `releases/25/OTP_VERSION`, where no other release lies beside it.
        let inside = inside(&self.folder, &releases);
        let mut found = fs::read_dir(inside).ok()?.take(MOST_RELEASES).filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let exact =
                text(&self.folder, &format!("{releases}/{name}/OTP_VERSION")).and_then(|text| node::version(&text))?;
            exact.split('.').next().map(str::to_owned)
        });
        found.next().filter(|_| found.next().is_none())
    }
}

/// A file of the node, seen from here.
fn inside(folder: &Path, path: &str) -> PathBuf {
    folder.join("root").join(path.trim_start_matches('/'))
}

/// A short text file of the node. The path is the node's word: it may be of a pipe, or of something endless.
fn text(folder: &Path, path: &str) -> Option<String> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(inside(folder, path)).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(LONGEST_TEXT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// `/proc/PID/cmdline`. The arguments need not be UTF-8.
pub(super) fn words(command_line: &[u8]) -> Vec<String> {
    let words = command_line.split(|&byte| byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// A constant string of the emulator. OTP 29 hides them (`-fvisibility=hidden`).
fn text_symbol(elf: &Elf<'_>, name: &str) -> Option<String> {
    let bytes = symbol(elf, name)?;
    let text = bytes.split(|&byte| byte == 0).next()?;
    node::version(str::from_utf8(text).ok()?)
}

fn symbol<'data>(elf: &Elf<'data>, name: &str) -> Option<&'data [u8]> {
    let symbol = elf.dynamic_symbols().find(|symbol| symbol.is_definition() && symbol.name() == Ok(name))?;
    bytes_at(elf, ElfAddress(symbol.address()), symbol.size().min(64))
}

fn emulator(elf: Option<&Elf<'_>>, maps: &Maps) -> Emulator {
    // `etp_beamasm` is an `int` of the emulator since OTP 24; where it is hidden, code made at run time gives it away.
    let constant = elf.and_then(is_compiling);
    if constant.unwrap_or_else(|| maps.mappings.iter().any(Mapping::is_jit)) { Emulator::Jit } else { Emulator::Emu }
}

/// Whether an emulator compiles Erlang code, by what it says itself.
fn is_compiling(elf: &Elf<'_>) -> Option<bool> {
    symbol(elf, "etp_beamasm").map(|bytes| bytes.iter().any(|&byte| byte != 0))
}

/// The machine that a file is made for, by its name in Rust.
fn architecture(elf: &Elf<'_>) -> &'static str {
    match elf.architecture() {
        Architecture::X86_64 => "x86_64",
        Architecture::Aarch64 => "aarch64",
        Architecture::Riscv64 => "riscv64",
        _ => "unknown",
    }
}

fn libc(folder: &str, maps: &Maps, memory: &impl ReadMemory) -> Option<String> {
    let mut code = maps.mappings.iter().filter(|mapping| mapping.permissions.execute);
    let (mapping, libc) = code.find_map(|mapping| Some((mapping, Libc::of(mapping.file_name()?)?)))?;
    if libc == Libc::Musl {
        return Some("musl".to_owned());
    }
    let version =
        ModuleFile::open(folder, maps, mapping, memory).ok().and_then(|file| node::glibc_version(&file.bytes));
    Some(version.map_or_else(|| "glibc".to_owned(), |version| format!("glibc {version}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_regular_files_are_read() {
        let own = Path::new("/proc/self");
        assert!(text(own, "/proc/self/status").is_some_and(|text| text.contains("Pid:")));
        assert_eq!(text(own, "/dev/zero"), None);
        assert_eq!(text(own, "/no/such/file"), None);
    }

    #[test]
    fn arguments_need_not_be_text() {
        assert_eq!(words(b"beam.smp\0--\0\0-x\0\xff\0"), ["beam.smp", "--", "-x", "\u{fffd}"]);
        assert!(words(b"").is_empty());
    }
}
