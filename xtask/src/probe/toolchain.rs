//! Which compiler on this machine can build for BPF, and how is it called?

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::manifest::Tools;
use crate::setup::{Need, Packages, Presence, on_path};

pub(super) const HOW_TO_GET: &str = "\
One of these builds the BPF program, together with bpf-linker 0.13 in the path:
  - Debian: apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev
    LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22 --locked
  - rustup: rustup toolchain install nightly --component rust-src; cargo install bpf-linker --version 0.13.0 --locked";

/// Debian's way.
pub(super) const NEEDS: [Need; 7] = [
    debian("Debian's Rust compiler", "/usr/bin/rustc", "rustc-web"),
    debian("Debian's cargo", "/usr/bin/cargo", "cargo-web"),
    debian("a core library for BPF", "/usr/lib/rustlib/bpfel-unknown-none/lib", "libstd-rust-web-dev-bpf"),
    debian("LLVM 22", "/usr/lib/llvm-22/bin/llvm-config", "llvm-22-dev"),
    debian("LLVM 22's Polly", "/usr/lib/llvm-22/lib/libPolly.a", "libpolly-22-dev"),
    debian("the header of zstd", "/usr/include/zstd.h", "libzstd-dev"),
    debian("the header of zlib", "/usr/include/zlib.h", "zlib1g-dev"),
];

const fn debian(what: &'static str, file: &'static str, packages: &'static str) -> Need {
    Need { what, presence: Presence::File(file), packages: Packages::everywhere(packages) }
}

/// A way to build for `bpfel-unknown-none`.
pub(super) struct Toolchain {
    kind: Kind,
    pub(super) versions: Tools,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Debian's compiler with a core library that is built already.
    Debian,
    /// rustup's nightly; builds the core library.
    Nightly,
    /// Debian's compiler; builds the core library.
    DebianSource,
}

/// The first of the ways that is complete here, else what each of them lacks.
pub(super) fn detect(root: &Path) -> Result<Toolchain, String> {
    if !linker_is_there() {
        return Err("bpf-linker is not installed".to_owned());
    }
    let linker = version(root, &["bpf-linker"]).map_err(|error| format!("bpf-linker: {error:#}"))?;
    for kind in [Kind::Debian, Kind::Nightly, Kind::DebianSource] {
        if kind.is_complete(root)
            && let Ok(rustc) = version(root, kind.rustc())
        {
            let core = if matches!(kind, Kind::Debian) { "prebuilt" } else { "built" };
            return Ok(Toolchain { kind, versions: Tools { rustc, bpf_linker: linker, core: core.to_owned() } });
        }
    }
    Err("neither Debian's rustc-web with libstd-rust-web-dev-bpf (or rust-web-src) \
         nor a rustup nightly with rust-src is installed"
        .to_owned())
}

/// Builds bpf-linker against Debian's LLVM, if there is none.
pub(super) fn install_linker(root: &Path) -> Result<()> {
    if linker_is_there() {
        return Ok(());
    }
    eprintln!("==> install bpf-linker");
    let status = clean(root, "cargo")
        .args(["install", "bpf-linker", "--version", "0.13.0", "--locked"])
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", "/usr/lib/llvm-22")
        .status()
        .context("cargo does not start")?;
    ensure!(status.success(), "bpf-linker could not be installed");
    Ok(())
}

impl Toolchain {
    /// Builds the object for traced machines of this architecture, and returns where it is.
    pub(super) fn build(&self, root: &Path, target: &Path, architecture: &str) -> Result<PathBuf> {
        let (program, first) = match self.kind {
            Kind::Debian | Kind::DebianSource => ("/usr/bin/cargo", &[][..]),
            Kind::Nightly => ("rustup", &["run", "nightly", "cargo"][..]),
        };
        let mut command = clean(root, program);
        command.args(first).args(["build", "--quiet", "--release", "--locked", "--package", "beamscope-probe"]);
        command.args(["--bin", "beamscope-probe", "--features", "program", "--target", "bpfel-unknown-none"]);
        // The kernel takes a callback only with its type, which is made from debug information; no path of this machine in
        // that, nor in what panics say.
        command.args(["--config", "profile.release.debug=2"]);
        command.args(["-Z", "trim-paths", "--config", "profile.release.trim-paths='all'"]);
        command.arg("--target-dir").arg(target);
        match self.kind {
            Kind::Debian => {}
            Kind::Nightly | Kind::DebianSource => {
                command.args(["-Z", "build-std=core"]);
            }
        }
        match self.kind {
            Kind::Nightly => {}
            Kind::Debian | Kind::DebianSource => {
                command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
            }
        }
        // Read by aya-ebpf's build script; without it, it takes the architecture of this machine.
        command.env("AYA_BPF_TARGET_ARCH", architecture);
        // What a user's configuration adds for programs of the host is not for BPF.
        command.env("CARGO_ENCODED_RUSTFLAGS", "-Clink-arg=--btf");
        let status = command.status().with_context(|| format!("{program} does not start"))?;
        ensure!(status.success(), "the BPF program does not build for {architecture}");
        Ok(target.join("bpfel-unknown-none/release/beamscope-probe"))
    }
}

impl Kind {
    fn rustc(self) -> &'static [&'static str] {
        match self {
            Self::Debian | Self::DebianSource => &["/usr/bin/rustc"],
            Self::Nightly => &["rustup", "run", "nightly", "rustc"],
        }
    }

    fn is_complete(self, root: &Path) -> bool {
        let sysroot = || output(root, self.rustc(), &["--print", "sysroot"]).ok().map(PathBuf::from);
        match self {
            Self::Debian => Path::new("/usr/bin/cargo").exists() && sysroot().is_some_and(|path| has_bpf_core(&path)),
            Self::DebianSource => {
                Path::new("/usr/bin/cargo").exists() && sysroot().is_some_and(|path| has_source(&path))
            }
            Self::Nightly => on_path("rustup") && sysroot().is_some_and(|path| has_source(&path)),
        }
    }
}

fn has_bpf_core(sysroot: &Path) -> bool {
    let libraries = fs::read_dir(sysroot.join("lib/rustlib/bpfel-unknown-none/lib"));
    libraries.is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-")))
    })
}

fn has_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

fn linker_is_there() -> bool {
    env::split_paths(&path_with_cargo()).any(|folder| folder.join("bpf-linker").is_file())
}

fn version(root: &Path, command: &[&str]) -> Result<String> {
    output(root, command, &["--version"])
}

fn output(root: &Path, command: &[&str], arguments: &[&str]) -> Result<String> {
    let (program, first) = command.split_first().context("an empty command")?;
    let output = clean(root, program).args(first).args(arguments).output()?;
    ensure!(output.status.success(), "{program} {} failed", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A command without what the cargo that runs this xtask has put into the environment for its own compiler.
fn clean(root: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root).env("PATH", path_with_cargo());
    let foreign = |name: &str| {
        let prefixes = ["RUSTC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "RUSTDOC", "CLIPPY", "CARGO"];
        name != "CARGO_HOME" && prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(foreign)) {
        command.env_remove(name);
    }
    command
}

/// `cargo install` puts bpf-linker into a folder that may not be on the path.
fn path_with_cargo() -> OsString {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from).or(home).map(|cargo| cargo.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(cargo);
    env::join_paths(folders).unwrap_or(path)
}
