//! How does a result leave: to a file, which must not harm another one, or to standard output?

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anstream::{AutoStream, ColorChoice};
use anyhow::{Context as _, bail};
use tempfile::NamedTempFile;

/// A file that is to be written. It has a place before there is anything to write, so that a bad path fails at once.
///
/// Only the owner may read it: the names in a recording are none of others' business. Dropped without
/// [`Output::commit`], it leaves nothing behind, and an older file as it was.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    destination: Destination,
}

#[derive(Debug)]
enum Destination {
    /// The place was free, and has been taken.
    New { file: File, _removed_on_drop: RemoveOnDrop },
    /// The place is held by an older file until there is all of the new one.
    Replacing(NamedTempFile),
}

impl Output {
    /// Takes the place `path`. Another file there is an error, unless `force` allows to replace it.
    pub fn create(path: &Path, force: bool) -> anyhow::Result<Self> {
        let destination = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => Destination::New { file, _removed_on_drop: RemoveOnDrop(Some(path.to_owned())) },
            Err(error) if error.kind() == ErrorKind::AlreadyExists => replacing(path, force)?,
            Err(error) => return Err(error).with_context(|| format!("cannot create {}", path.display())),
        };
        Ok(Self { path: path.to_owned(), destination })
    }

    /// Writes the file. Where that fails, there is no file, or the older one.
    pub fn commit(self, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Self { path, destination } = self;
        let failed = || format!("cannot write {}", path.display());
        match destination {
            Destination::New { file, _removed_on_drop: mut placed } => {
                write_all(&file, write).with_context(failed)?;
                placed.0 = None;
            }
            Destination::Replacing(file) => {
                write_all(file.as_file(), write).with_context(failed)?;
                file.persist(&path).map_err(|error| error.error).with_context(failed)?;
            }
        }
        Ok(())
    }
}

/// Writes `text` to standard output, styled where `color` and the terminal want it. A reader that has gone away, such
/// as `head`, has seen enough.
pub fn print(text: &str, color: ColorChoice) -> anyhow::Result<()> {
    print_to(AutoStream::new(io::stdout(), color).lock(), text)
}

/// `text` without its styles.
pub fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

fn print_to(mut out: impl Write, text: &str) -> anyhow::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to standard output"),
        _ => Ok(()),
    }
}

fn write_all(file: &File, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut buffered = BufWriter::new(file);
    write(&mut buffered)?;
    buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
    // Some file systems notice only here that they are full.
    Ok(file.sync_all()?)
}

/// Only an ordinary file is replaced. A rename would put a file in the place of `/dev/null`; and what a link points to,
/// somebody else may have chosen.
fn replacing(path: &Path, force: bool) -> anyhow::Result<Destination> {
    let name = path.display();
    let kind = fs::symlink_metadata(path).with_context(|| format!("cannot look at {name}"))?.file_type();
    if kind.is_dir() {
        bail!("{name} is a directory; name a file in it");
    }
    if kind.is_symlink() {
        bail!("{name} is a symbolic link, and is not written through; name the file itself");
    }
    if !kind.is_file() {
        bail!("{name} is not an ordinary file; choose another name");
    }
    if !force {
        bail!("{name} exists; choose another name, or replace it with --force");
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(".beamscope-")
        .tempfile_in(folder)
        .with_context(|| format!("cannot create a file beside {name}"))?;
    Ok(Destination::Replacing(file))
}

#[derive(Debug)]
struct RemoveOnDrop(Option<PathBuf>);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // What cannot be removed stays, and is empty or cut; the command has failed with a message already.
            fs::remove_file(path).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use anyhow::anyhow;
    use tempfile::{TempDir, tempdir};

    use super::*;

    fn folder() -> TempDir {
        tempdir().expect("a folder for the test")
    }

    fn write(path: &Path, force: bool, text: &str) -> anyhow::Result<()> {
        Output::create(path, force)?.commit(|out| Ok(out.write_all(text.as_bytes())?))
    }

    fn names(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).expect("the folder is there");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn writes_a_file_for_its_owner_only() {
        let folder = folder();
        let path = folder.path().join("a");
        for (force, text) in [(false, "first"), (true, "second")] {
            write(&path, force, text).expect("is written");
            assert_eq!(fs::read_to_string(&path).expect("is there"), text);
            assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(names(&folder), ["a"]);
    }

    #[test]
    fn replaces_only_when_it_is_told_to() {
        let folder = folder();
        let path = folder.path().join("a");
        fs::write(&path, "older").expect("is written");
        let error = write(&path, false, "newer").expect_err("must be refused");
        assert!(error.to_string().ends_with("/a exists; choose another name, or replace it with --force"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("is there"), "older");
    }

    #[test]
    fn follows_no_link_and_replaces_no_device() {
        let folder = folder();
        let (link, dangling) = (folder.path().join("link"), folder.path().join("dangling"));
        symlink("/dev/null", &link).expect("is made");
        symlink(folder.path().join("nowhere"), &dangling).expect("is made");
        for path in [link.as_path(), &dangling, folder.path(), Path::new("/dev/null")] {
            for force in [false, true] {
                let error = write(path, force, "text").expect_err("must be refused");
                assert!(!error.to_string().contains("--force"), "that would not help: {error}");
            }
        }
        assert!(!folder.path().join("nowhere").exists());
    }

    #[test]
    fn leaves_nothing_half_done() {
        let folder = folder();
        let path = folder.path().join("a");
        let fail = |force| {
            let output = Output::create(&path, force).expect("the place is free, or may be taken");
            output.commit(|out| {
                out.write_all(b"half")?;
                Err(anyhow!(io::Error::from(ErrorKind::StorageFull)))
            })
        };
        let error = fail(false).expect_err("the disk is full");
        assert_eq!(format!("{error:#}"), format!("cannot write {}: no storage space", path.display()));
        assert!(names(&folder).is_empty());

        fs::write(&path, "older").expect("is written");
        fail(true).expect_err("the disk is full");
        assert_eq!(names(&folder), ["a"]);
        assert_eq!(fs::read_to_string(&path).expect("is there"), "older");

        drop(Output::create(&path, true).expect("may be taken"));
        assert_eq!(fs::read_to_string(&path).expect("is there"), "older");
    }

    #[test]
    fn a_reader_that_has_gone_away_is_no_error() {
        struct Broken(ErrorKind);
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        print_to(Broken(ErrorKind::BrokenPipe), "text").expect("is no error");
        print_to(Broken(ErrorKind::StorageFull), "text").expect_err("is one");
    }
}
