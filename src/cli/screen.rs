use std::fmt::Display;
use std::io::{self, BufWriter, Write};

/// Where a command writes: data to one side, words to the other.
pub(crate) struct Screen<'a> {
    out: Box<dyn Write + 'a>,
    err: Box<dyn Write + 'a>,
    json: bool,
}

impl<'a> Screen<'a> {
    pub(crate) fn new(out: impl Write + 'a, err: impl Write + 'a, json: bool) -> Self {
        Self {
            out: Box::new(out),
            err: Box::new(err),
            json,
        }
    }

    pub(crate) fn of_this_process(json: bool) -> Self {
        Self::new(BufWriter::new(io::stdout()), io::stderr(), json)
    }

    /// Whether a script reads the data.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// A line of data.
    pub(crate) fn line(&mut self, line: impl Display) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }

    /// Data as it is.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// A line of words. What is said is no part of the result, so a closed stderr is no error.
    pub(crate) fn say(&mut self, line: impl Display) {
        let _ = writeln!(self.err, "{line}");
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
