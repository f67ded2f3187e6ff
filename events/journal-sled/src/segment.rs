//! Segment files: names, headers, and bytes read from them.
//!
//! Invariants: a segment appears under its name only when its header is durable; its ordinal is its place in the order
//! of names and never changes, because segments are never removed.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use events_journal::ReadError;
use parking_lot::Mutex;

use crate::{
    error::{OpenError, corrupt, open_io, read_io},
    format::{HEADER_BYTES, HeaderFault, LogKey, SegmentHeader},
    limit::OPEN_FILES_MAX,
};

pub(crate) const LOG_DIR: &str = "log";
pub(crate) const INDEX_DIR: &str = "index";
pub(crate) const LOCK_FILE: &str = "lock";
/// Ends the name of a segment that has no first position yet.
pub(crate) const SPARE_SUFFIX: &str = ".next";
const SUFFIX: &str = ".seg";

/// Place of a frame: ordinal of the segment in the upper half, byte offset in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location(pub(crate) u64);

impl Location {
    pub(crate) const fn new(ordinal: u32, offset: u64) -> Self {
        Self((ordinal as u64) << 32 | (offset & 0xFFFF_FFFF))
    }
    pub(crate) const fn ordinal(self) -> u32 {
        (self.0 >> 32) as u32
    }
    pub(crate) const fn offset(self) -> u64 {
        self.0 & 0xFFFF_FFFF
    }
}

pub(crate) fn path_of(log_dir: &Path, first_position: u64) -> PathBuf {
    log_dir.join(format!("{first_position:020}{SUFFIX}"))
}

/// First positions of all segments, ascending.
pub(crate) fn list(log_dir: &Path) -> Result<Vec<u64>, OpenError> {
    let mut firsts = Vec::new();
    for entry in fs::read_dir(log_dir).map_err(open_io("list", log_dir))? {
        let name = entry.map_err(open_io("list", log_dir))?.file_name();
        let name = name.to_string_lossy();
        if let Some(number) = name.strip_suffix(SUFFIX).filter(|number| number.len() == 20) {
            firsts.extend(number.parse::<u64>().ok());
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// Removes what an earlier process prepared and did not use.
pub(crate) fn remove_spares(log_dir: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(log_dir).map_err(open_io("list", log_dir))? {
        let path = entry.map_err(open_io("list", log_dir))?.path();
        if path.to_string_lossy().ends_with(SPARE_SUFFIX) {
            fs::remove_file(&path).map_err(open_io("remove", &path))?;
        }
    }
    Ok(())
}

/// Gives a prepared file its header and then, durably, its name.
pub(crate) fn install(
    file: &File,
    prepared: &Path,
    log_dir: &Path,
    key: &LogKey,
    (first_position, chain): (u64, u32),
) -> io::Result<PathBuf> {
    file.write_all_at(&SegmentHeader { log_id: key.id, first_position, chain }.encode(), 0)?;
    file.sync_data()?;
    let path = path_of(log_dir, first_position);
    fs::rename(prepared, &path)?;
    sync_dir(log_dir)?;
    Ok(path)
}

/// Makes names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a segment's header and checks that it belongs under this name.
pub(crate) fn read_header(file: &File, path: &Path, first_position: u64) -> Result<SegmentHeader, OpenError> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            corrupt(path, 0, "the segment ends inside its header").into()
        } else {
            open_io("read", path)(error)
        }
    })?;
    let header = SegmentHeader::parse(&bytes).map_err(|fault| match fault {
        HeaderFault::Damaged(reason) => corrupt(path, 0, reason).into(),
        HeaderFault::Version(version) => OpenError::UnsupportedVersion { file: path.display().to_string(), version },
    })?;
    if header.first_position != first_position {
        let reason = format!("the header says that the first position is {}", header.first_position);
        return Err(corrupt(path, 32, reason).into());
    }
    Ok(header)
}

/// Reads at most `bytes` at an offset into a buffer that needs no zeroing first; fewer only at the end of the file.
pub(crate) fn read_some(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(bytes);
    while buffer.len() < bytes {
        let at = offset + buffer.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), at) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(buffer)
}

/// A view of a file that slides forward: what is asked for is read in large pieces.
#[derive(Debug)]
pub(crate) struct Window<'a> {
    file: &'a File,
    pub(crate) path: &'a Path,
    start: u64,
    buffer: Vec<u8>,
}

const WINDOW_BYTES: usize = 1024 * 1024;

impl<'a> Window<'a> {
    pub(crate) const fn new(file: &'a File, path: &'a Path) -> Self {
        Self { file, path, start: 0, buffer: Vec::new() }
    }

    /// The bytes at an offset; fewer only at the end of the file.
    pub(crate) fn get(&mut self, offset: u64, bytes: usize) -> Result<&[u8], ReadError> {
        let inside = |start: u64, len: usize| offset >= start && offset + bytes as u64 <= start + len as u64;
        if !inside(self.start, self.buffer.len()) {
            let wanted = bytes.max(WINDOW_BYTES);
            self.buffer = read_some(self.file, offset, wanted).map_err(read_io(self.path.display().to_string()))?;
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX).min(self.buffer.len());
        let to = from.saturating_add(bytes).min(self.buffer.len());
        Ok(self.buffer.get(from..to).unwrap_or_default())
    }

    /// Forgets what was read, because somebody else may have written since.
    pub(crate) fn forget(&mut self) {
        self.buffer.clear();
    }
}

/// The segments' files, opened for reading when needed and kept in a bounded number.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) log_dir: PathBuf,
    open: Mutex<VecDeque<(u64, Arc<File>)>>,
}

impl Files {
    pub(crate) fn new(log_dir: PathBuf) -> Self {
        Self { log_dir, open: Mutex::new(VecDeque::new()) }
    }

    pub(crate) fn path(&self, first_position: u64) -> PathBuf {
        path_of(&self.log_dir, first_position)
    }

    pub(crate) fn get(&self, first_position: u64) -> Result<Arc<File>, ReadError> {
        let mut open = self.open.lock();
        if let Some((_, file)) = open.iter().find(|(first, _)| *first == first_position) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(first_position);
        let file = Arc::new(File::open(&path).map_err(read_io(path.display().to_string()))?);
        if open.len() >= OPEN_FILES_MAX {
            open.pop_front();
        }
        open.push_back((first_position, Arc::clone(&file)));
        Ok(file)
    }

    /// Closes all files, because the directory came back as another one.
    pub(crate) fn forget(&self) {
        self.open.lock().clear();
    }
}
