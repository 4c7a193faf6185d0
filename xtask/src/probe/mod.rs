//! How do the checked-in BPF objects come from their sources, and do they still match them?

mod compare;
mod manifest;
mod strip;
mod toolchain;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{project::Project, setup};
use manifest::Manifest;
use toolchain::Toolchain;

/// The architectures of traced machines; each has its own `pt_regs`, and so its own object.
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// Builds both objects and the manifest into `probe/prebuilt`.
pub(crate) fn build(project: &Project) -> Result<()> {
    let toolchain = match obtain(project) {
        Ok(toolchain) => toolchain,
        Err(reason) => bail!("no tool chain for BPF: {reason}\n{}", toolchain::HOW_TO_GET),
    };
    let folder = prebuilt(project);
    let staging = project.target.join("probe/built");
    build_objects(project, &toolchain, &staging)?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for architecture in ARCHITECTURES {
        let name = object_name(architecture);
        fs::copy(staging.join(&name), folder.join(&name)).with_context(|| format!("cannot write {name}"))?;
    }
    let manifest = Manifest::of(&project.root, &folder, &ARCHITECTURES.map(object_name), toolchain.versions)?;
    manifest.write(&folder)?;
    println!("{}", folder.display());
    Ok(())
}

/// Fails when the objects are not those of the sources.
pub(crate) fn check(project: &Project) -> Result<()> {
    let folder = prebuilt(project);
    let recorded = Manifest::read(&folder)?;
    let names = ARCHITECTURES.map(object_name);
    let mut present = Manifest::of(&project.root, &folder, &names, recorded.tools.clone())?;
    let advice = "run `cargo xtask probe` and commit probe/prebuilt";
    ensure!(
        present.sources_sha256 == recorded.sources_sha256,
        "the sources of the BPF program are not those of the checked-in objects; {advice}"
    );
    ensure!(present.objects == recorded.objects, "the BPF objects are not those of their manifest; {advice}");
    let toolchain = match obtain(project) {
        Ok(toolchain) => toolchain,
        Err(reason) => {
            println!("only the hashes of the BPF program's sources and objects were compared: {reason}");
            return Ok(());
        }
    };
    let staging = project.target.join("probe/checked");
    build_objects(project, &toolchain, &staging)?;
    let mut differences = Vec::new();
    for name in &names {
        differences.extend(compare::differences(name, &read(&folder.join(name))?, &read(&staging.join(name))?)?);
    }
    present.tools = toolchain.versions;
    if differences.is_empty() {
        println!("the BPF objects are what their sources give ({})", present.tools.rustc);
    } else if present.tools == recorded.tools {
        bail!("the BPF objects are not what their sources give:\n  {}\n{advice}", differences.join("\n  "));
    } else {
        println!(
            "only the hashes of the BPF program's sources and objects were compared: they were built by {}, here is {}",
            recorded.tools, present.tools
        );
    }
    Ok(())
}

fn prebuilt(project: &Project) -> PathBuf {
    project.root.join("probe/prebuilt")
}

fn object_name(architecture: &str) -> String {
    format!("beamscope-probe-{architecture}.o")
}

/// The tool chain, installed if need be and possible; else the reason why there is none.
fn obtain(project: &Project) -> Result<Toolchain, String> {
    toolchain::detect(&project.root).or_else(|_lacking| {
        setup::try_install(&toolchain::NEEDS)?;
        toolchain::install_linker(&project.root).map_err(|error| format!("{error:#}"))?;
        toolchain::detect(&project.root)
    })
}

fn build_objects(project: &Project, toolchain: &Toolchain, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    let target = project.target.join("probe");
    for architecture in ARCHITECTURES {
        let name = object_name(architecture);
        eprintln!("    build {name}");
        let built = toolchain.build(&project.root, &target, architecture)?;
        let bytes = strip::without_debug_sections(&read(&built)?)
            .with_context(|| format!("cannot take the debug information out of {name}"))?;
        refuse_paths(project, &name, &bytes)?;
        fs::write(into.join(&name), bytes).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

/// An object that is given to others tells nothing about the machine that it was built on.
fn refuse_paths(project: &Project, name: &str, bytes: &[u8]) -> Result<()> {
    let mut forbidden = vec!["/registry/", "/.cargo", "/home/", "/root/", "/rustc/", "/build/", "/usr/", "://"]
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
    forbidden.push(project.root.display().to_string());
    forbidden
        .extend(["HOME", "CARGO_HOME"].iter().filter_map(|name| env::var(name).ok()).filter(|path| path.len() > 1));
    // Where Debian's package has the sources of the core library, on every machine.
    let text = String::from_utf8_lossy(bytes).replace("/usr/src/rustc-", "");
    for needle in forbidden {
        if let Some(at) = text.find(&needle) {
            let rest: String = text.get(at..).unwrap_or_default().chars().take_while(|c| !c.is_control()).collect();
            bail!("{name} contains the path {rest:?}; it must hold none");
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
