//! NumPy's `.npy` format, version 1.0: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use crate::job::resolved::Precision;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// The data begin at a multiple of this.
const ALIGN: usize = 64;

/// A number that `.npy` files are made of here. Both are stored as little-endian.
pub trait Element: bytemuck::Pod {
    const PRECISION: Precision;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Element for f32 {
    const PRECISION: Precision = Precision::F32;
    fn from_f64(value: f64) -> Self {
        value as Self
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Element for f64 {
    const PRECISION: Precision = Precision::F64;
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
}

fn bytes_of(precision: Precision) -> u64 {
    match precision {
        Precision::F32 => 4,
        Precision::F64 => 8,
    }
}

/// What a file of vectors is an array of, for those who open it in NumPy. On disk each vector is one run of numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// One number per vector: an array of shape (count).
    Line,
    /// Vectors are the rows of an array of shape (count, width), in C order.
    Rows,
    /// Vectors are the columns of an array of shape (width, count), in Fortran order.
    Columns,
}

/// Shape and type of a file of vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vectors {
    pub count: u64,
    pub width: u64,
    pub precision: Precision,
    pub layout: Layout,
}

impl Vectors {
    /// The header, with magic and padding.
    pub fn header(&self) -> Vec<u8> {
        let descr = match self.precision {
            Precision::F32 => "<f4",
            Precision::F64 => "<f8",
        };
        let (count, width) = (self.count, self.width);
        let (order, shape) = match self.layout {
            Layout::Line => ("False", format!("({count},)")),
            Layout::Rows => ("False", format!("({count}, {width})")),
            Layout::Columns => ("True", format!("({width}, {count})")),
        };
        let mut text =
            format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
        let fixed = MAGIC.len() + 2 + 2;
        let whole = (fixed + text.len() + 1).next_multiple_of(ALIGN);
        text.push_str(&" ".repeat(whole - fixed - text.len() - 1));
        text.push('\n');
        let length = u16::try_from(text.len()).expect("a header is short");
        let mut header = MAGIC.to_vec();
        header.extend([1, 0]);
        header.extend(length.to_le_bytes());
        header.extend(text.as_bytes());
        header
    }

    /// Length of the file in bytes; `None` where no file can be so long.
    pub fn file_bytes(&self) -> Option<u64> {
        self.count
            .checked_mul(self.width)?
            .checked_mul(bytes_of(self.precision))?
            .checked_add(self.header().len() as u64)
            .filter(|&bytes| bytes <= i64::MAX as u64)
    }
}

/// Writes vectors in blocks, in any order and from any thread.
#[derive(Debug)]
pub struct VectorWriter {
    file: File,
    vectors: Vectors,
    data_start: u64,
}

impl VectorWriter {
    /// Writes the header. `file` is empty or has been given its full length already.
    ///
    /// # Errors
    /// As of the file.
    pub fn new(file: File, vectors: Vectors) -> io::Result<Self> {
        let header = vectors.header();
        write_all_at(&file, &header, 0)?;
        Ok(Self {
            file,
            vectors,
            data_start: header.len() as u64,
        })
    }

    pub fn vectors(&self) -> Vectors {
        self.vectors
    }

    /// Writes whole vectors beginning with number `first`. Numbers of the other precision are converted.
    ///
    /// # Errors
    /// As of the file.
    ///
    /// # Panics
    /// When `numbers` are not whole vectors, or reach beyond the last.
    pub fn write<T: Element>(&self, first: u64, numbers: &[T]) -> io::Result<()> {
        let Vectors { count, width, .. } = self.vectors;
        if numbers.is_empty() {
            return Ok(());
        }
        let given = numbers.len() as u64;
        assert!(
            given.is_multiple_of(width) && first + given / width <= count,
            "{given} numbers at vector {first} do not fit {count} vectors of {width}"
        );
        let precision = self.vectors.precision;
        let start = self.data_start + first * width * bytes_of(precision);
        if T::PRECISION == precision {
            return write_all_at(&self.file, bytemuck::cast_slice(numbers), start);
        }
        // In pieces, so that converting needs little memory.
        const PIECE: usize = 1 << 14;
        let mut at = start;
        for piece in numbers.chunks(PIECE) {
            let written = match precision {
                Precision::F32 => {
                    let piece: Vec<f32> = piece.iter().map(|x| x.to_f64() as f32).collect();
                    write_all_at(&self.file, bytemuck::cast_slice(&piece), at)?;
                    piece.len() * 4
                }
                Precision::F64 => {
                    let piece: Vec<f64> = piece.iter().map(|x| x.to_f64()).collect();
                    write_all_at(&self.file, bytemuck::cast_slice(&piece), at)?;
                    piece.len() * 8
                }
            };
            at += written as u64;
        }
        Ok(())
    }
}

/// Reads such files back, those of other writers included where they hold `<f4` or `<f8` in one or two dimensions.
#[derive(Debug)]
pub struct VectorReader {
    file: File,
    vectors: Vectors,
    data_start: u64,
}

impl VectorReader {
    /// # Errors
    /// `InvalidData` for what is no `.npy` file of real numbers or is cut short, else as of the file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut start = [0; 10];
        read_exact_at(&file, &mut start, 0)?;
        if &start[..6] != MAGIC || start[6] != 1 {
            return Err(invalid("not an .npy file of version 1.0"));
        }
        let length = usize::from(u16::from_le_bytes([start[8], start[9]]));
        let mut text = vec![0; length];
        read_exact_at(&file, &mut text, 10)?;
        let text = String::from_utf8(text).map_err(|_| invalid("the header is not text"))?;
        let vectors = parse_header(&text).ok_or_else(|| invalid("the header is not understood"))?;
        let data_start = 10 + length as u64;
        let bytes = vectors.count * vectors.width * bytes_of(vectors.precision);
        if file.metadata()?.len() < data_start + bytes {
            return Err(invalid("the file is cut short"));
        }
        Ok(Self {
            file,
            vectors,
            data_start,
        })
    }

    pub fn vectors(&self) -> Vectors {
        self.vectors
    }

    /// Reads `into.len() / width` vectors beginning with number `first`.
    ///
    /// # Errors
    /// As of the file.
    ///
    /// # Panics
    /// When these are not whole vectors, or reach beyond the last.
    pub fn read(&self, first: u64, into: &mut [f64]) -> io::Result<()> {
        let Vectors { count, width, .. } = self.vectors;
        let wanted = into.len() as u64;
        assert!(
            width > 0 && wanted.is_multiple_of(width) && first + wanted / width <= count,
            "{wanted} numbers at vector {first} are not in {count} vectors of {width}"
        );
        let start = self.data_start + first * width * bytes_of(self.vectors.precision);
        match self.vectors.precision {
            Precision::F64 => read_exact_at(&self.file, bytemuck::cast_slice_mut(into), start),
            Precision::F32 => {
                let mut narrow = vec![0f32; into.len()];
                read_exact_at(&self.file, bytemuck::cast_slice_mut(&mut narrow), start)?;
                for (wide, narrow) in into.iter_mut().zip(narrow) {
                    *wide = f64::from(narrow);
                }
                Ok(())
            }
        }
    }
}

/// Reads the dictionary that NumPy writes: three keys in any order.
fn parse_header(text: &str) -> Option<Vectors> {
    let after = |key: &str| {
        let at = text.find(&format!("'{key}'"))? + key.len() + 2;
        Some(text[at..].trim_start().strip_prefix(':')?.trim_start())
    };
    let precision = match after("descr")?.get(..5)? {
        "'<f4'" => Precision::F32,
        "'<f8'" => Precision::F64,
        _ => return None,
    };
    let order = after("fortran_order")?;
    let fortran = order.starts_with("True");
    if !fortran && !order.starts_with("False") {
        return None;
    }
    let shape = after("shape")?.strip_prefix('(')?;
    let shape = &shape[..shape.find(')')?];
    let numbers: Option<Vec<u64>> = shape
        .split(',')
        .map(str::trim)
        .filter(|number| !number.is_empty())
        .map(|number| number.parse().ok())
        .collect();
    let (count, width, layout) = match (numbers?.as_slice(), fortran) {
        (&[count], _) => (count, 1, Layout::Line),
        (&[count, width], false) => (count, width, Layout::Rows),
        (&[width, count], true) => (count, width, Layout::Columns),
        _ => return None,
    };
    let vectors = Vectors {
        count,
        width,
        precision,
        layout,
    };
    vectors.file_bytes().is_some().then_some(vectors)
}

fn invalid(message: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_string())
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        at += written as u64;
    }
    Ok(())
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, bytes, at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[read..];
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::harm::{harmed, largest_allocation};

    fn valid(layout: Layout, precision: Precision) -> Vec<u8> {
        let (count, width) = (5, if layout == Layout::Line { 1 } else { 3 });
        let vectors = Vectors {
            count,
            width,
            precision,
            layout,
        };
        let mut bytes = vectors.header();
        bytes.resize(vectors.file_bytes().unwrap() as usize, 1);
        bytes
    }

    proptest! {
        #[test]
        fn a_harmed_file_is_refused_or_read_without_harm(
            (bytes, other) in (
                harmed(valid(Layout::Columns, Precision::F32)),
                harmed(valid(Layout::Line, Precision::F64)),
            ),
        ) {
            for bytes in [bytes, other] {
                let (_directory, path, _file) = file();
                std::fs::write(&path, &bytes).unwrap();
                let (read, most) = largest_allocation(|| VectorReader::open(&path));
                prop_assert!(most <= 1 << 17, "{} bytes at once", most);
                match read {
                    Ok(reader) if reader.vectors().width > 0 && reader.vectors().count > 0 => {
                        let Vectors { count, width, .. } = reader.vectors();
                        let mut into = vec![0.0; usize::try_from(width).unwrap()];
                        reader.read(count - 1, &mut into).unwrap();
                    }
                    Ok(_) => {}
                    Err(why) => prop_assert!(matches!(
                        why.kind(),
                        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                    )),
                }
            }
        }
    }

    fn file() -> (tempfile::TempDir, std::path::PathBuf, File) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.npy");
        let file = File::create(&path).unwrap();
        (directory, path, file)
    }

    #[test]
    fn the_header_is_that_of_the_specification() {
        for (layout, count, width, dict) in [
            (
                Layout::Rows,
                3,
                2,
                "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }",
            ),
            (
                Layout::Columns,
                3,
                2,
                "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }",
            ),
            (
                Layout::Line,
                7,
                1,
                "{'descr': '<f4', 'fortran_order': False, 'shape': (7,), }",
            ),
        ] {
            let header = Vectors {
                count,
                width,
                precision: Precision::F32,
                layout,
            }
            .header();
            assert_eq!(&header[..8], b"\x93NUMPY\x01\x00");
            let length = usize::from(u16::from_le_bytes([header[8], header[9]]));
            assert_eq!(header.len(), 10 + length);
            assert_eq!(header.len() % 64, 0);
            let text = std::str::from_utf8(&header[10..]).unwrap();
            assert!(text.ends_with('\n'));
            assert_eq!(text.trim_end(), dict);
        }
    }

    #[test]
    fn blocks_in_any_order_come_back_in_both_precisions() {
        let numbers: Vec<f64> = (0..5 * 3).map(|i| f64::from(i) * 0.5 - 3.0).collect();
        for precision in [Precision::F32, Precision::F64] {
            for layout in [Layout::Rows, Layout::Columns] {
                let (_directory, path, file) = file();
                let vectors = Vectors {
                    count: 5,
                    width: 3,
                    precision,
                    layout,
                };
                let writer = VectorWriter::new(file, vectors).unwrap();
                let narrow: Vec<f32> = numbers[9..].iter().map(|&x| x as f32).collect();
                writer.write(3, &narrow).unwrap();
                writer.write(0, &numbers[..3]).unwrap();
                writer.write(1, &numbers[3..9]).unwrap();
                assert_eq!(
                    std::fs::metadata(&path).unwrap().len(),
                    vectors.file_bytes().unwrap()
                );
                let reader = VectorReader::open(&path).unwrap();
                assert_eq!(reader.vectors(), vectors);
                let mut back = vec![0.0; 15];
                reader.read(0, &mut back).unwrap();
                assert_eq!(back, numbers);
                let mut one = vec![0.0; 3];
                reader.read(4, &mut one).unwrap();
                assert_eq!(one, numbers[12..]);
            }
        }
    }

    #[test]
    fn what_is_no_npy_is_refused() {
        let (_directory, path, _file) = file();
        let vectors = Vectors {
            count: 2,
            width: 2,
            precision: Precision::F64,
            layout: Layout::Rows,
        };
        let good = [vectors.header(), vec![0; 32]].concat();
        std::fs::write(&path, &good).unwrap();
        assert!(VectorReader::open(&path).is_ok());
        for bad in [
            &b"PK"[..],
            &good[..good.len() - 1],
            &good[..20],
            b"\x93NUMPY\x01\x00\x02\x00{}",
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(VectorReader::open(&path).is_err());
        }
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn a_vector_beyond_the_last_is_a_broken_contract() {
        let (_directory, _path, file) = file();
        let vectors = Vectors {
            count: 2,
            width: 2,
            precision: Precision::F64,
            layout: Layout::Rows,
        };
        let writer = VectorWriter::new(file, vectors).unwrap();
        let _ = writer.write(1, &[0.0; 4]);
    }
}
