//! How do the Erlang and C sources of `tests/nodes` become what a node can load?

use std::{
    fs,
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
    build(project, &ALL, &folder)?;
    println!("{}", folder.display());
    Ok(())
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

/// What brings the allocators of a node into a known state: needs no C compiler.
pub(crate) const ALLOCATORS: Set = Set { libraries: &[], modules: &["node_control", "allocators", "allocator_recon"] };

/// Everything in `tests/nodes`.
pub(crate) const ALL: Set = Set {
    libraries: &[
        Library { name: "leaky", language: Language::C },
        Library { name: "leaky_cpp", language: Language::Cpp },
        Library { name: "thumbnails", language: Language::C },
        Library { name: "bench", language: Language::C },
        Library { name: "vm_api", language: Language::C },
    ],
    modules: &["node_control", "allocators", "allocator_recon", "leaky", "leaky_cpp", "thumbnails", "bench", "vm_api"],
};

struct Library {
    name: &'static str,
    language: Language,
}

#[derive(Clone, Copy)]
enum Language {
    C,
    Cpp,
}

/// Compiles what is older than its source.
pub(crate) fn build(project: &Project, set: &Set, folder: &Path) -> Result<()> {
    let Set { libraries, modules } = set;
    let shell = project.shell()?;
    let sources = project.root.join("tests/nodes");
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // A live node may have the old library mapped, so a new one takes its place by renaming.
    let staging = folder.join("staging");
    fs::create_dir_all(&staging).with_context(|| format!("cannot create {}", staging.display()))?;
    let mut include = None;
    for Library { name, language } in *libraries {
        let (compiler, ending) = match language {
            Language::C => ("gcc", "c"),
            Language::Cpp => ("g++", "cc"),
        };
        let source = sources.join(format!("{name}.{ending}"));
        let output = format!("{name}.so");
        if is_newer(&source, &folder.join(&output))? {
            let include = match &include {
                Some(include) => include,
                None => include.insert(include_folder()?),
            };
            let staged = staging.join(&output);
            cmd!(shell, "{compiler} -O2 -g -Wall -Wextra -fPIC -shared -I{include} -o {staged} {source}")
                .quiet()
                .run()?;
            fs::rename(&staged, folder.join(&output)).with_context(|| format!("cannot write {output}"))?;
        }
    }
    for name in *modules {
        let source = sources.join(format!("{name}.erl"));
        let output = format!("{name}.beam");
        if is_newer(&source, &folder.join(&output))? {
            cmd!(shell, "erlc -Wall -o {staging} {source}").quiet().run()?;
            fs::rename(staging.join(&output), folder.join(&output))
                .with_context(|| format!("cannot write {output}"))?;
        }
    }
    Ok(())
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

fn is_newer(source: &Path, output: &Path) -> Result<bool> {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let source = modified(source).with_context(|| format!("cannot read {}", source.display()))?;
    Ok(modified(output).unwrap_or(SystemTime::UNIX_EPOCH) < source)
}
