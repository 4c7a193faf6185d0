//! What does each task need on the machine, how is it recognised, and which package has it?

use std::{env, path::Path, process::Command};

use crate::fixtures;

/// A task that cannot run without things from outside the project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// `cargo xtask demo`
    Demo,
    /// `cargo xtask test`
    Test,
    /// `cargo xtask fixtures`
    Fixtures,
    /// `cargo xtask bench`
    Bench,
    /// `cargo xtask matrix`
    Matrix,
}

impl Job {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Test => "test",
            Self::Fixtures => "fixtures",
            Self::Bench => "bench",
            Self::Matrix => "matrix",
        }
    }

    /// What it needs root for.
    pub(crate) fn needs_root(self) -> Option<&'static str> {
        match self {
            Self::Fixtures => None,
            Self::Demo | Self::Test | Self::Bench => Some("uprobes and BPF programs need it"),
            Self::Matrix => Some("chroot and reading the memory of nodes need it"),
        }
    }

    pub(super) fn needs(self) -> &'static [Need] {
        match self {
            Self::Demo | Self::Bench => &[ERL, NIF_HEADER, GCC],
            Self::Fixtures => &[ERL, NIF_HEADER, GCC, GXX],
            Self::Matrix => &[ERL, NIF_HEADER, CRYPTO, GCC, GXX],
            Self::Test => &[ERL, NIF_HEADER, CRYPTO, TOOLS, RUNTIME_TOOLS, GCC, GXX, MAKE, MUSL_GCC, JEMALLOC, GDB],
        }
    }
}

/// One thing that has to be there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// What a person calls it.
    pub(crate) what: &'static str,
    pub(crate) presence: Presence,
    pub(crate) packages: Packages,
}

/// How a thing is recognised.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Presence {
    /// A program on the path.
    Command(&'static str),
    /// A shared library in the loader's cache.
    Library(&'static str),
    /// A file or a folder.
    File(&'static str),
    /// `erl_nif.h` of the `erl` on the path.
    NifHeader,
    /// An application of the `erl` on the path.
    Application(&'static str),
}

/// The packages of a thing, space-separated, by family of distributions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packages {
    pub(crate) debian: &'static str,
    pub(crate) fedora: &'static str,
    pub(crate) arch: &'static str,
    pub(crate) alpine: &'static str,
    pub(crate) suse: &'static str,
}

impl Packages {
    /// The same name everywhere.
    pub(crate) const fn everywhere(name: &'static str) -> Self {
        Self { debian: name, fedora: name, arch: name, alpine: name, suse: name }
    }

    const fn erlang(debian: &'static str) -> Self {
        Self { debian, ..Self::everywhere("erlang") }
    }
}

const ERL: Need =
    Need { what: "Erlang (erl)", presence: Presence::Command("erl"), packages: Packages::erlang("erlang-base") };
const NIF_HEADER: Need = Need {
    what: "Erlang's C header erl_nif.h",
    presence: Presence::NifHeader,
    packages: Packages { alpine: "erlang-dev", ..Packages::erlang("erlang-dev") },
};
const CRYPTO: Need = Need {
    what: "Erlang's crypto",
    presence: Presence::Application("crypto"),
    packages: Packages::erlang("erlang-crypto"),
};
const TOOLS: Need = Need {
    what: "Erlang's tools",
    presence: Presence::Application("tools"),
    packages: Packages::erlang("erlang-tools"),
};
const RUNTIME_TOOLS: Need = Need {
    what: "Erlang's runtime_tools",
    presence: Presence::Application("runtime_tools"),
    packages: Packages::erlang("erlang-runtime-tools"),
};
const GCC: Need = Need {
    what: "a C compiler (gcc)",
    presence: Presence::Command("gcc"),
    packages: Packages { debian: "gcc libc6-dev", alpine: "gcc musl-dev", ..Packages::everywhere("gcc") },
};
const GXX: Need = Need {
    what: "a C++ compiler (g++)",
    presence: Presence::Command("g++"),
    packages: Packages { debian: "g++", fedora: "gcc-c++", arch: "gcc", alpine: "g++", suse: "gcc-c++" },
};
const MAKE: Need = Need { what: "make", presence: Presence::Command("make"), packages: Packages::everywhere("make") };
const MUSL_GCC: Need = Need {
    what: "a compiler for musl (musl-gcc)",
    presence: Presence::Command("musl-gcc"),
    packages: Packages { debian: "musl-tools", fedora: "musl-gcc", arch: "musl", alpine: "musl-dev", suse: "musl" },
};

const GDB: Need = Need {
    what: "a tool that dumps the core of a process (gcore)",
    presence: Presence::Command("gcore"),
    packages: Packages { fedora: "gdb gdb-headless", ..Packages::everywhere("gdb") },
};
const JEMALLOC: Need = Need {
    what: "jemalloc as a shared library",
    presence: Presence::Library("libjemalloc.so.2"),
    packages: Packages { debian: "libjemalloc2", alpine: "jemalloc", ..Packages::everywhere("jemalloc") },
};

/// Those of `needs` that are not there.
pub(super) fn missing(needs: &[Need]) -> Vec<Need> {
    needs.iter().filter(|need| !need.presence.holds()).copied().collect()
}

impl Presence {
    fn holds(self) -> bool {
        match self {
            Self::Command(name) => on_path(name),
            Self::File(name) => Path::new(name).exists(),
            // Named by its place, which is not on every user's path.
            Self::Library(name) => Command::new("/sbin/ldconfig")
                .arg("-p")
                .output()
                .is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains(name)),
            Self::NifHeader => on_path("erl") && fixtures::include_folder().is_ok(),
            Self::Application(name) => on_path("erl") && fixtures::has_application(name),
        }
    }
}

/// Whether a program of this name is in a folder of PATH.
pub(crate) fn on_path(name: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}
