//! How is a recording or a memory image kept in a file?
//!
//! One line of text, `beamscope-KIND FORMAT VERSION`, and then the value as JSON in gzip. The line can be read by every
//! version of beamscope, so that a file of another one is refused by name and not as garbage.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// A value that is kept in a file.
pub trait Stored: Serialize + DeserializeOwned {
    /// What it is called: `recording`.
    const KIND: &'static str;
    /// Changes whenever an older beamscope could not read the JSON any more, or would read something else out of it.
    const FORMAT: u32;
    /// Version of the beamscope that made it.
    fn writer(&self) -> &str;
}

/// First word of every file, before the kind.
const MAGIC: &str = "beamscope-";

/// Bytes of the first line at most. A line that goes on is none of ours.
const LINE_BYTES: u64 = 128;

/// Bytes of JSON at most. 64 Ki sites of 64 frames are half of it, and so are the headers of 20 million blocks; a small
/// file that swells to more is an attack.
const JSON_BYTES: u64 = 2 << 30;

/// Why a file could not be read.
#[derive(Debug, Error)]
pub enum StoredError {
    /// The file begins with something else.
    #[error("not a beamscope {kind}")]
    Other {
        /// What was expected.
        kind: &'static str,
    },
    /// Another version wrote it.
    #[error("a {kind} of format {format}, written by beamscope {writer}; this beamscope reads format {ours}")]
    OtherFormat {
        /// What was expected.
        kind: &'static str,
        /// The format that this beamscope reads.
        ours: u32,
        /// Its format.
        format: u32,
        /// The version that wrote it.
        writer: String,
    },
    /// It ends early.
    #[error("the file is truncated: it ends before its last byte was written")]
    Truncated,
    /// Its checksum, its compression or its JSON is wrong.
    #[error("the file is damaged")]
    Damaged(#[source] io::Error),
    /// It unpacks to more than 2 GiB.
    #[error("the file unpacks to more than {JSON_BYTES} bytes")]
    TooLarge,
    /// The file could not be read.
    #[error("the file cannot be read")]
    Io(#[source] io::Error),
}

/// Writes `value`.
pub fn write<T: Stored>(value: &T, mut into: impl Write) -> io::Result<()> {
    let writer = value.writer().replace(|letter: char| letter.is_whitespace(), "_");
    writeln!(into, "{MAGIC}{} {} {writer}", T::KIND, T::FORMAT)?;
    let mut json = BufWriter::new(GzEncoder::new(into, Compression::default()));
    serde_json::to_writer(&mut json, value)?;
    let gzip = json.into_inner().map_err(io::IntoInnerError::into_error)?;
    gzip.finish()?.flush()
}

/// Reads a value.
pub fn read<T: Stored>(from: impl Read) -> Result<T, StoredError> {
    read_bounded(from, JSON_BYTES)
}

/// Whether a file that begins with `bytes` is of this kind, in whatever format.
pub fn is_a<T: Stored>(bytes: &[u8]) -> bool {
    bytes.starts_with(format!("{MAGIC}{} ", T::KIND).as_bytes())
}

fn read_bounded<T: Stored>(from: impl Read, limit: u64) -> Result<T, StoredError> {
    let mut from = BufReader::new(from);
    check_line::<T>(&first_line(&mut from)?)?;
    let json = BufReader::new(Bounded { reader: GzDecoder::new(from), left: limit });
    // It reads on behind the JSON to the end of the stream, and so to the checksum.
    serde_json::from_reader(json).map_err(|error| match error.io_error_kind() {
        Some(io::ErrorKind::UnexpectedEof) => StoredError::Truncated,
        Some(io::ErrorKind::FileTooLarge) => StoredError::TooLarge,
        // What flate2 says of bytes that are no gzip.
        None | Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => StoredError::Damaged(error.into()),
        Some(_) => StoredError::Io(error.into()),
    })
}

fn first_line(from: &mut impl BufRead) -> Result<Vec<u8>, StoredError> {
    let mut line = Vec::new();
    from.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line).map_err(StoredError::Io)?;
    Ok(line)
}

fn check_line<T: Stored>(line: &[u8]) -> Result<(), StoredError> {
    let magic = format!("{MAGIC}{} ", T::KIND);
    let other = StoredError::Other { kind: T::KIND };
    let Some(rest) = line.strip_prefix(magic.as_bytes()) else {
        // What is left of a file that was cut within the first word.
        let cut = !line.is_empty() && magic.as_bytes().starts_with(line);
        return Err(if cut { StoredError::Truncated } else { other });
    };
    let Some(rest) = rest.strip_suffix(b"\n") else {
        let cut = (line.len() as u64) < LINE_BYTES;
        return Err(if cut { StoredError::Truncated } else { other });
    };
    let words = str::from_utf8(rest).ok().and_then(|rest| rest.split_once(' '));
    let Some((format, writer)) = words.and_then(|(format, writer)| Some((format.parse::<u32>().ok()?, writer))) else {
        return Err(other);
    };
    if format == T::FORMAT {
        return Ok(());
    }
    // The name goes to a terminal.
    let writer = writer.chars().filter(char::is_ascii_graphic).collect();
    Err(StoredError::OtherFormat { kind: T::KIND, ours: T::FORMAT, format, writer })
}

/// Ends with an error, and not with the end of the file, where more than `left` bytes would be read.
struct Bounded<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        self.left = self.left.checked_sub(count as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{recording::Recording, sample};

    fn read(bytes: &[u8]) -> Result<Recording, StoredError> {
        super::read(bytes)
    }

    fn bytes_of(recording: &Recording) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(recording, &mut bytes).expect("a vector takes everything");
        bytes
    }

    fn check_error(bytes: &[u8], expected: &str) {
        let error = read(bytes).expect_err("must be refused");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn says_what_is_no_recording() {
        check_error(b"", "not a beamscope recording");
        check_error(b"\x7fELF", "not a beamscope recording");
        check_error(b"beamscope-recording one 0.1.0\n", "not a beamscope recording");
        check_error(&[b'b'; 4096], "not a beamscope recording");
        check_error(&[b"beamscope-recording ", [b'1'; 4096].as_slice()].concat(), "not a beamscope recording");
    }

    #[test]
    fn names_the_version_that_wrote_another_format() {
        check_error(
            b"beamscope-recording 7 3.1.4\x1b[2J\n",
            "a recording of format 7, written by beamscope 3.1.4[2J; this beamscope reads format 4",
        );
    }

    #[test]
    fn refuses_what_unpacks_to_too_much() {
        let bytes = bytes_of(&sample::recording());
        assert!(matches!(read_bounded::<Recording>(bytes.as_slice(), 100), Err(StoredError::TooLarge)));
    }

    #[test]
    fn is_the_same_recording_after_reading() {
        let recording = sample::recording();
        let bytes = bytes_of(&recording);
        assert_eq!(read(&bytes).expect("was written by us"), recording);
        assert_eq!(bytes, bytes_of(&recording));
    }

    #[test]
    fn is_truncated_wherever_it_is_cut() {
        let bytes = bytes_of(&sample::recording());
        for length in 1..bytes.len() {
            let error = read(&bytes[..length]).expect_err("a part is no recording");
            assert!(matches!(error, StoredError::Truncated), "{length} of {}: {error:?}", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn figures_come_back_as_they_were(pid: u32, seconds in 0.0..1e9, bytes: u64, name: Option<String>, note: String) {
            let mut recording = sample::recording();
            recording.node.pid = pid;
            recording.node.name = name;
            recording.interval.seconds = seconds;
            recording.notes.push(note);
            for site in &mut recording.sites {
                site.allocated_bytes = bytes;
                site.outstanding.push(seconds, bytes);
            }
            prop_assert_eq!(read(&bytes_of(&recording)).expect("was written by us"), recording);
        }

        #[test]
        fn a_flipped_byte_never_panics(at: prop::sample::Index, mask in 1_u8..) {
            let mut bytes = bytes_of(&sample::recording());
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
            // Some bytes of the gzip header, such as its time, stand for nothing.
            if let Ok(recording) = read(&bytes) {
                prop_assert_eq!(recording, sample::recording());
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            prop_assert!(read(&bytes).is_err());
            prop_assert!(read(&[b"beamscope-recording 2 0.1.0\n".as_slice(), &bytes].concat()).is_err());
        }
    }
}
