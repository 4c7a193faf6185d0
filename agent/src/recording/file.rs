//! How is a recording kept in a file?
//!
//! One line of text, `beamscope-recording FORMAT VERSION`, and then the recording as JSON in gzip. The line can be read
//! by every version of beamscope, so that a file of another one is refused by name and not as garbage.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use thiserror::Error;

use super::Recording;

/// First word of every recording.
const MAGIC: &[u8] = b"beamscope-recording ";

/// Changes whenever an older beamscope could not read the JSON any more, or would read something else out of it.
const FORMAT: u32 = 1;

/// Bytes of the first line at most. A line that goes on is none of ours.
const LINE_BYTES: u64 = 128;

/// Bytes of JSON at most. 64 Ki sites of 64 frames are half of it; a small file that swells to more is an attack.
const JSON_BYTES: u64 = 2 << 30;

/// Why a recording could not be read.
#[derive(Debug, Error)]
pub enum RecordingError {
    /// The file begins with something else.
    #[error("not a beamscope recording")]
    NotARecording,
    /// Another version wrote it.
    #[error("a recording of format {format}, written by beamscope {writer}; this beamscope reads format {FORMAT}")]
    OtherFormat {
        /// Its format.
        format: u32,
        /// The version that wrote it.
        writer: String,
    },
    /// It ends early.
    #[error("the recording is truncated: it ends before its last byte was written")]
    Truncated,
    /// Its checksum, its compression or its JSON is wrong.
    #[error("the recording is damaged")]
    Damaged(#[source] io::Error),
    /// It unpacks to more than 2 GiB.
    #[error("the recording unpacks to more than {JSON_BYTES} bytes")]
    TooLarge,
    /// The file could not be read.
    #[error("the recording cannot be read")]
    Io(#[source] io::Error),
}

/// Writes `recording`.
pub fn write(recording: &Recording, mut into: impl Write) -> io::Result<()> {
    into.write_all(MAGIC)?;
    writeln!(into, "{FORMAT} {}", recording.beamscope.replace(|letter: char| letter.is_whitespace(), "_"))?;
    let mut json = BufWriter::new(GzEncoder::new(into, Compression::default()));
    serde_json::to_writer(&mut json, recording)?;
    let gzip = json.into_inner().map_err(io::IntoInnerError::into_error)?;
    gzip.finish()?.flush()
}

/// Reads a recording.
pub fn read(from: impl Read) -> Result<Recording, RecordingError> {
    read_bounded(from, JSON_BYTES)
}

fn read_bounded(from: impl Read, limit: u64) -> Result<Recording, RecordingError> {
    let mut from = BufReader::new(from);
    check_line(&first_line(&mut from)?)?;
    let json = BufReader::new(Bounded { reader: GzDecoder::new(from), left: limit });
    // It reads on behind the JSON to the end of the stream, and so to the checksum.
    serde_json::from_reader(json).map_err(|error| match error.io_error_kind() {
        Some(io::ErrorKind::UnexpectedEof) => RecordingError::Truncated,
        Some(io::ErrorKind::FileTooLarge) => RecordingError::TooLarge,
        // What flate2 says of bytes that are no gzip.
        None | Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => RecordingError::Damaged(error.into()),
        Some(_) => RecordingError::Io(error.into()),
    })
}

fn first_line(from: &mut impl BufRead) -> Result<Vec<u8>, RecordingError> {
    let mut line = Vec::new();
    from.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line).map_err(RecordingError::Io)?;
    Ok(line)
}

fn check_line(line: &[u8]) -> Result<(), RecordingError> {
    let Some(rest) = line.strip_prefix(MAGIC) else {
        // What is left of a file that was cut within the first word.
        let cut = !line.is_empty() && MAGIC.starts_with(line);
        return Err(if cut { RecordingError::Truncated } else { RecordingError::NotARecording });
    };
    let Some(rest) = rest.strip_suffix(b"\n") else {
        let cut = (line.len() as u64) < LINE_BYTES;
        return Err(if cut { RecordingError::Truncated } else { RecordingError::NotARecording });
    };
    let words = str::from_utf8(rest).ok().and_then(|rest| rest.split_once(' '));
    let Some((format, writer)) = words.and_then(|(format, writer)| Some((format.parse::<u32>().ok()?, writer))) else {
        return Err(RecordingError::NotARecording);
    };
    if format == FORMAT {
        return Ok(());
    }
    // The name goes to a terminal.
    let writer = writer.chars().filter(char::is_ascii_graphic).collect();
    Err(RecordingError::OtherFormat { format, writer })
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
    use crate::sample;

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
        check_error(&[MAGIC, &[b'1'; 4096]].concat(), "not a beamscope recording");
    }

    #[test]
    fn names_the_version_that_wrote_another_format() {
        check_error(
            b"beamscope-recording 7 3.1.4\x1b[2J\n",
            "a recording of format 7, written by beamscope 3.1.4[2J; this beamscope reads format 1",
        );
    }

    #[test]
    fn refuses_what_unpacks_to_too_much() {
        let bytes = bytes_of(&sample::recording());
        assert!(matches!(read_bounded(bytes.as_slice(), 100), Err(RecordingError::TooLarge)));
    }

    #[test]
    fn is_the_same_recording_after_reading() {
        let recording = sample::recording();
        let bytes = bytes_of(&recording);
        assert_eq!(read(bytes.as_slice()).expect("was written by us"), recording);
        assert_eq!(bytes, bytes_of(&recording));
    }

    #[test]
    fn is_truncated_wherever_it_is_cut() {
        let bytes = bytes_of(&sample::recording());
        for length in 1..bytes.len() {
            let error = read(&bytes[..length]).expect_err("a part is no recording");
            assert!(matches!(error, RecordingError::Truncated), "{length} of {}: {error:?}", bytes.len());
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
            prop_assert_eq!(read(bytes_of(&recording).as_slice()).expect("was written by us"), recording);
        }

        #[test]
        fn a_flipped_byte_never_panics(at: prop::sample::Index, mask in 1_u8..) {
            let mut bytes = bytes_of(&sample::recording());
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
            // Some bytes of the gzip header, such as its time, stand for nothing.
            if let Ok(recording) = read(bytes.as_slice()) {
                prop_assert_eq!(recording, sample::recording());
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            prop_assert!(read(bytes.as_slice()).is_err());
            prop_assert!(read([b"beamscope-recording 1 0.1.0\n", bytes.as_slice()].concat().as_slice()).is_err());
        }
    }
}
