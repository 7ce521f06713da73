//! The file of an application: where it is, its variables, and the project's name.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::error::{ComposeError, FileError};
use super::project::Project;
use super::reader::{Reader, Text};
use super::variables::{Variables, of_file};
use super::yaml;
use crate::config::file::open;

/// Names that are looked for, the first there is.
const NAMES: [&str; 4] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yaml",
    "docker-compose.yml",
];
/// The file of variables beside it.
const VARIABLES: &str = ".env";
/// Most bytes of a file.
const MAX_FILE: u64 = 1 << 20;

/// Which file, and what beside it.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The file; one in the current folder if `None`.
    pub path: Option<PathBuf>,
    /// The project's name in place of the file's.
    pub name: Option<String>,
    /// Profiles whose services are started, too; `*` for all.
    pub profiles: Vec<String>,
}

/// A file that was read.
#[derive(Debug)]
pub struct Opened {
    /// Its path.
    pub path: PathBuf,
    /// Its folder, to which its paths are relative.
    pub folder: PathBuf,
    /// The project's name.
    pub name: String,
    /// What it describes.
    pub project: Project,
    file: File,
}

impl Opened {
    /// Read the file that is `wanted`.
    ///
    /// # Errors
    /// [`ComposeError`].
    pub fn read(wanted: &Wanted) -> Result<Self, ComposeError> {
        let path = match &wanted.path {
            Some(path) => path.clone(),
            None => {
                let mut there = NAMES.iter().map(PathBuf::from).filter(|it| it.exists());
                there.next().ok_or(ComposeError::NoFile)?
            }
        };
        let refused = |reason: String| ComposeError::Read {
            path: path.clone(),
            reason,
        };
        let (file, text) = read(&path).map_err(refused)?;
        let whole = path
            .canonicalize()
            .map_err(|error| refused(error.to_string()))?;
        let folder = whole.parent().unwrap_or(Path::new("/")).to_path_buf();
        let variables = variables(&folder)?;
        let mut profiles = wanted.profiles.clone();
        let more = variables.get("COMPOSE_PROFILES").into_iter();
        profiles.extend(more.flat_map(|it| it.split(',')).map(String::from));
        let wrong = |error| ComposeError::File {
            path: path.clone(),
            error,
        };
        let reader = Reader {
            variables: &variables,
            folder: &folder,
        };
        let tree = yaml::parse(&text).map_err(wrong)?;
        let project = Project::read(&reader, &tree, &profiles).map_err(wrong)?;
        let given = wanted.name.clone().or_else(|| {
            let name = variables.get("COMPOSE_PROJECT_NAME")?;
            Some(name.clone()).filter(|name| !name.is_empty())
        });
        let given = given.map(|text| Text { line: 1, text });
        let name = match given.or_else(|| project.name.clone()) {
            Some(name) => checked(name).map_err(wrong)?,
            None => of_folder(&folder).map_err(wrong)?,
        };
        Ok(Self {
            path,
            folder,
            name,
            project,
            file,
        })
    }

    /// Keep others from changing the application while this lives.
    ///
    /// # Errors
    /// [`ComposeError::Busy`].
    pub fn lock(&self) -> Result<(), ComposeError> {
        let locked = flock(&self.file, FlockOperation::NonBlockingLockExclusive);
        locked.map_err(|_| ComposeError::Busy {
            path: self.path.clone(),
        })
    }

    /// Let others change the application again.
    pub fn unlock(&self) {
        // It cannot fail for a file that is open.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// The variables of the file beside it, and over them this process's.
fn variables(folder: &Path) -> Result<Variables, ComposeError> {
    let path = folder.join(VARIABLES);
    let mut variables = match path.is_file() {
        true => match read(&path) {
            Ok((_, text)) => of_file(&text),
            Err(reason) => return Err(ComposeError::Read { path, reason }),
        },
        false => Variables::new(),
    };
    // What is no text cannot be named in a file.
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    variables.extend(std::env::vars_os().filter_map(text));
    Ok(variables)
}

fn read(path: &Path) -> Result<(File, String), String> {
    let mut file = open(path, MAX_FILE)?;
    let mut bytes = Vec::new();
    let read = (&mut file).take(MAX_FILE).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "no text (UTF-8)")?;
    Ok((file, text))
}

/// A project's name, by docker's rule.
fn checked(name: Text) -> Result<String, FileError> {
    let known =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    let first = name.text.bytes().next();
    let fits = (1..=40).contains(&name.text.len())
        && first.is_some_and(|it| it.is_ascii_lowercase() || it.is_ascii_digit())
        && name.text.bytes().all(known);
    match fits {
        true => Ok(name.text),
        false => Err(name.wrong(
            "a project's name has 1 to 40 lower-case letters, digits, '-' and '_', the first a letter or digit",
        )),
    }
}

/// The name that a folder gives to the project in it.
fn of_folder(folder: &Path) -> Result<String, FileError> {
    let name = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let known = |it: &char| it.is_ascii_alphanumeric() || "_-".contains(*it);
    let name: String = name.chars().filter(known).take(40).collect();
    let text = name.trim_start_matches(['-', '_']).to_string();
    match text.is_empty() {
        true => Err(FileError::at(
            1,
            "the folder's name gives the project none; write name: at the top",
        )),
        false => Ok(text),
    }
}
