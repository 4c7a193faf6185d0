//! How do the Erlang, C, C++ and Rust sources of `tests/nodes` become what a node can load?

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use xshell::{Shell, cmd};

use crate::{
    project::Project,
    setup::{self, Job},
};

/// Compiles every fixture into `target/nodes`.
pub(crate) fn run(project: &Project) -> Result<()> {
    setup::ensure(Job::Fixtures)?;
    let folder = project.target.join("nodes");
    build_all(project, &folder)?;
    println!("{}", folder.display());
    Ok(())
}

/// The same into a folder.
pub(crate) fn build_all(project: &Project, folder: &Path) -> Result<()> {
    ALL.iter().try_for_each(|set| build(project, set, folder))
}

/// What a node needs: NIF libraries and the Erlang modules that load and steer them.
pub(crate) struct Set {
    libraries: &'static [Library],
    modules: &'static [&'static str],
}

impl Set {
    /// The names of its Erlang modules.
    pub(crate) fn modules(&self) -> &'static [&'static str] {
        self.modules
    }
}

/// The demo's: needs no C++ compiler.
pub(crate) const DEMO: Set = Set {
    libraries: &[Library { name: "thumbnails", language: Language::C }],
    modules: &["node_control", "thumbnails"],
};

/// The benchmark's.
pub(crate) const BENCH: Set = Set {
    libraries: &[
        Library { name: "bench", language: Language::C },
        Library { name: "leaky", language: Language::C },
        Library { name: "vm_api", language: Language::C },
    ],
    modules: &["node_control", "bench", "leaky", "allocators", "allocator_recon", "vm_api"],
};

/// What brings allocators and code of a node into a known state: needs no C compiler.
pub(crate) const ALLOCATORS: Set =
    Set { libraries: &[], modules: &["node_control", "allocators", "allocator_recon", "code_places", "processes"] };

/// Calls that take memory at the end of stacks that are known frame by frame.
pub(crate) const STACKS: Set = Set {
    libraries: &[
        Library { name: "stacks", language: Language::C },
        Library { name: "stacks_cpp", language: Language::Cpp },
        Library { name: "stacks_drv", language: Language::C },
        Library { name: "stacks_rust", language: Language::Rust },
        Library { name: "stacks_ssl", language: Language::C },
    ],
    modules: &[
        "node_control",
        "stacks",
        "stacks_cpp",
        "stacks_drv",
        "stacks_loader",
        "stacks_marks",
        "stacks_rust",
        "stacks_server",
        "stacks_ssl",
        "Elixir.MyApp.Worker",
    ],
};

/// What the tests need beside the others.
const LEAKS: Set = Set {
    libraries: &[
        Library { name: "leaky", language: Language::C },
        Library { name: "leaky_cpp", language: Language::Cpp },
        Library { name: "thumbnails", language: Language::C },
        Library { name: "bench", language: Language::C },
        Library { name: "vm_api", language: Language::C },
    ],
    modules: &["node_control", "leaky", "leaky_cpp", "thumbnails", "bench", "vm_api"],
};

/// Workloads whose truth is known, beside those of the others.
const SCENARIOS: Set = Set {
    libraries: &[
        Library { name: "scenario", language: Language::C },
        Library { name: "scenario_drv", language: Language::C },
        Library { name: "scenario_lib", language: Language::C },
    ],
    modules: &["scenario"],
};

/// Everything in `tests/nodes`.
const ALL: [&Set; 4] = [&ALLOCATORS, &LEAKS, &STACKS, &SCENARIOS];

struct Library {
    name: &'static str,
    language: Language,
}

#[derive(Clone, Copy)]
enum Language {
    C,
    Cpp,
    Rust,
}

impl Language {
    fn ending(self) -> &'static str {
        match self {
            Self::C => "c",
            Self::Cpp => "cc",
            Self::Rust => "rs",
        }
    }
}

/// Compiles what is older than its source.
pub(crate) fn build(project: &Project, set: &Set, folder: &Path) -> Result<()> {
    build_libraries(project, set, folder, None)?;
    let shell = project.shell()?;
    let sources = project.root.join("tests/nodes");
    let staging = staging(folder)?;
    for name in set.modules {
        let source = sources.join(format!("{name}.erl"));
        let output = format!("{name}.beam");
        if is_newer(&with_headers(&source, "hrl")?, &folder.join(&output))? {
            cmd!(shell, "erlc -Wall -o {staging} {source}").quiet().run()?;
            fs::rename(staging.join(&output), folder.join(&output))
                .with_context(|| format!("cannot write {output}"))?;
        }
    }
    Ok(())
}

/// The sources of a set's modules, with what they may include.
pub(crate) fn erlang_sources(project: &Project, set: &Set) -> Result<BTreeSet<PathBuf>> {
    let sources = project.root.join("tests/nodes");
    let of = |name: &&str| with_headers(&sources.join(format!("{name}.erl")), "hrl");
    Ok(set.modules.iter().map(of).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Compiles the libraries of a set that are older than their sources, for this machine or to run in `root`. In
/// `folder/stripped` there is another copy of each, as distributions ship them.
pub(crate) fn build_libraries(project: &Project, set: &Set, folder: &Path, root: Option<&Path>) -> Result<()> {
    let shell = project.shell()?;
    let staging = staging(folder)?;
    let stripped = folder.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("cannot create {}", stripped.display()))?;
    let mut paths = None;
    for Library { name, language } in set.libraries {
        let source = project.root.join("tests/nodes").join(format!("{name}.{}", language.ending()));
        let output = format!("{name}.so");
        let (whole, bare) = (folder.join(&output), stripped.join(&output));
        let sources = with_headers(&source, "h")?;
        if !is_newer(&sources, &whole)? && !is_newer(&sources, &bare)? {
            continue;
        }
        let (include, links) = match &paths {
            Some(paths) => paths,
            None => paths.insert((include_folder()?, root.map(|root| link_folder(&staging, root)).transpose()?)),
        };
        let link: Vec<_> = links.iter().map(|folder| format!("-L{}", folder.display())).collect();
        let staged = staging.join(&output);
        match language {
            Language::C | Language::Cpp => {
                let compiler = if matches!(language, Language::C) { "gcc" } else { "g++" };
                let options = ["-O2", "-g", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", "-shared"];
                cmd!(shell, "{compiler} {options...} -I{include} {link...} -o {staged} {source}").quiet().run()?;
            }
            Language::Rust => {
                let mut options = vec!["--edition=2021", "--crate-type=cdylib", "-Copt-level=2", "-g"];
                if let Some(folder) = links
                    && !exports(&folder.join("libc.so"), "fstat64")?
                {
                    options.push("--cfg=libc_without_stat");
                }
                let link = link.iter().map(|argument| format!("-Clink-arg={argument}"));
                cmd!(shell, "rustc {options...} {link...} -o {staged} {source}").quiet().run()?;
            }
        }
        let without_symbols = staging.join(format!("{name}.stripped.so"));
        cmd!(shell, "strip --strip-all -o {without_symbols} {staged}").quiet().run()?;
        fs::rename(&without_symbols, &bare).with_context(|| format!("cannot write {}", bare.display()))?;
        fs::rename(&staged, &whole).with_context(|| format!("cannot write {}", whole.display()))?;
    }
    Ok(())
}

/// A live node may have the old library mapped, so a new one takes its place by renaming: from here.
fn staging(folder: &Path) -> Result<PathBuf> {
    let staging = folder.join("staging");
    fs::create_dir_all(&staging).with_context(|| format!("cannot create {}", staging.display()))?;
    Ok(staging)
}

/// The shared libraries of `root` under the names that the linker looks for, so that it asks for versions of the C
/// library's functions that are there.
fn link_folder(staging: &Path, root: &Path) -> Result<PathBuf> {
    let links = staging.join("link");
    fs::create_dir_all(&links).with_context(|| format!("cannot create {}", links.display()))?;
    let names = ["libc.so.6", "libpthread.so.0", "libdl.so.2", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6"];
    for name in names {
        let Some(library) = library_in(root, name) else { continue };
        let (stem, _version) = name.split_once(".so").context("a shared library")?;
        let link = links.join(format!("{stem}.so"));
        if !link.is_symlink() {
            symlink(&library, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    Ok(links)
}

/// Whether a name is among those of a shared library.
fn exports(library: &Path, name: &str) -> Result<bool> {
    let content = fs::read(library).with_context(|| format!("cannot read {}", library.display()))?;
    let entry = format!("\0{name}\0");
    Ok(content.windows(entry.len()).any(|window| window == entry.as_bytes()))
}

/// A library in one of the folders for the libraries of an architecture.
fn library_in(root: &Path, name: &str) -> Option<PathBuf> {
    let folders = ["lib", "usr/lib"].map(|folder| fs::read_dir(root.join(folder)));
    let inside = folders.into_iter().flatten().flatten().flatten().map(|entry| entry.path().join(name));
    inside.into_iter().find(|path| path.exists())
}

/// The folder of `erl_nif.h` that belongs to the `erl` on the path.
pub(crate) fn include_folder() -> Result<PathBuf> {
    let answer = ask_erl(r#"io:format("~ts~n~ts", [code:root_dir(), erlang:system_info(version)])"#)?;
    let (root, version) = answer.split_once('\n').context("erl did not say where it is installed")?;
    let root = Path::new(root);
    let candidates = [
        root.join("usr/include"),
        root.join(format!("erts-{version}/include")),
        PathBuf::from("/usr/lib/erlang/usr/include"),
        PathBuf::from("/usr/include"),
    ];
    let found = candidates.iter().find(|folder| folder.join("erl_nif.h").is_file());
    found
        .cloned()
        .with_context(|| format!("erl_nif.h is in none of {candidates:?}; on Debian it is in the package erlang-dev"))
}

/// Whether the `erl` on the path has this OTP application.
pub(crate) fn has_application(name: &str) -> bool {
    ask_erl(&format!("io:format(\"~tp\", [is_list(code:lib_dir({name}))])")).is_ok_and(|answer| answer == "true")
}

fn ask_erl(expression: &str) -> Result<String> {
    let shell = Shell::new()?;
    let program = format!("{expression}, halt().");
    cmd!(shell, "erl -noshell -noinput -eval {program}").quiet().read().context("erl does not start")
}

/// A source and all that it may include: the files with this ending beside it.
fn with_headers(source: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let folder = source.parent().context("a source is in a folder")?;
    let mut files = vec![source.to_owned()];
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == ending) {
            files.push(path);
        }
    }
    Ok(files)
}

/// Whether one of the sources is newer than the output.
fn is_newer(sources: &[PathBuf], output: &Path) -> Result<bool> {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let built = modified(output).unwrap_or(SystemTime::UNIX_EPOCH);
    for source in sources {
        if modified(source).with_context(|| format!("cannot read {}", source.display()))? > built {
            return Ok(true);
        }
    }
    Ok(false)
}
