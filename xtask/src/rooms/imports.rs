//! Which file of a crate imports from which other, from the tokens of its sources.
//!
//! A path that begins with `crate`, `self`, `super`, a child module or an imported name is
//! followed through re-exports to the file that defines the item. Code for tests only is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The segments of a path, or the names of a module and of those around it, the outermost first.
type Names = Vec<String>;

/// Longest chain of re-exports that is followed: more is a name that re-exports itself.
const MAX_REEXPORTS: usize = 16;

/// The modules of a crate, of which each file is at least one.
#[derive(Default)]
struct Modules {
    /// Directory that files are named from.
    base: PathBuf,
    by_name: BTreeMap<Names, Module>,
}

#[derive(Default)]
struct Module {
    /// The module that is the whole file: this one or, for an inline module, one around it.
    file: FileModule,
    /// What `use` declarations bind names to.
    bindings: HashMap<String, Names>,
    globs: Vec<Names>,
    items: HashSet<String>,
    /// All paths of `use` declarations and expressions.
    paths: Vec<Names>,
}

/// A module that is a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileModule {
    pub(super) module: Names,
    /// Relative to the source tree.
    pub(super) file: String,
}

/// That one file imports from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Import {
    pub(super) from: FileModule,
    pub(super) to: FileModule,
}

/// The imports between the files of the crate whose root module is the file `root` of the
/// directory `base`, save those between a module and one that contains it.
pub(super) fn imports_of(base: &Path, root: &str) -> Result<BTreeSet<Import>> {
    let mut modules = Modules { base: base.to_owned(), ..Modules::default() };
    let directory = Path::new(root).parent().context("a crate root lies in a directory")?;
    modules.read_file(Path::new(root), Names::new(), directory)?;
    let mut imports = BTreeSet::new();
    for (name, module) in &modules.by_name {
        for path in &module.paths {
            let Some(target) = modules.resolve(name, path, 0) else { continue };
            let (from, to) = (&module.file, &modules.by_name[&target].file);
            if !from.module.starts_with(&to.module) && !to.module.starts_with(&from.module) {
                imports.insert(Import { from: from.clone(), to: to.clone() });
            }
        }
    }
    Ok(imports)
}

impl Modules {
    /// `children` is the directory of the files of child modules.
    fn read_file(&mut self, file: &Path, name: Names, children: &Path) -> Result<()> {
        let shown = file.display().to_string();
        let text =
            fs::read_to_string(self.base.join(file)).with_context(|| format!("cannot read {shown}"))?;
        let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{shown} is no Rust: {error}"))?;
        let file = FileModule { module: name.clone(), file: shown };
        self.by_name.insert(name.clone(), Module { file, ..Module::default() });
        self.scan(tokens, &name, children)
    }

    fn scan(&mut self, tokens: TokenStream, name: &Names, children: &Path) -> Result<()> {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut attributes = Attributes::default();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    if let Some(TokenTree::Group(group)) = tokens.get(at) {
                        attributes.add(group.stream());
                        at += 1;
                    }
                    continue;
                }
                _ if attributes.is_test => {
                    let ends_item = |token: &TokenTree| match token {
                        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                        token => is_punct(Some(token), ';'),
                    };
                    at += tokens[at - 1..].iter().take_while(|token| !ends_item(token)).count();
                }
                TokenTree::Ident(word) if word == "use" => {
                    let end = at + tokens[at..].iter().take_while(|t| !is_punct(Some(t), ';')).count();
                    let module = self.module(name)?;
                    module.add_use(&tokens[at..end], Names::new());
                    at = end;
                }
                TokenTree::Ident(word) if word == "mod" => {
                    let Some(TokenTree::Ident(child)) = tokens.get(at) else { continue };
                    let child = child.to_string();
                    let child_name = [name.as_slice(), std::slice::from_ref(&child)].concat();
                    match tokens.get(at + 1) {
                        Some(TokenTree::Group(body)) => {
                            let file = self.module(name)?.file.clone();
                            self.by_name.insert(child_name.clone(), Module { file, ..Module::default() });
                            self.scan(body.stream(), &child_name, &children.join(child))?;
                        }
                        // One module may have two files, of which features choose.
                        _ if !self.by_name.contains_key(&child_name) => {
                            let file = match &attributes.path {
                                Some(path) => Path::new(&self.module(name)?.file.file).with_file_name(path),
                                None => Some(children.join(format!("{child}.rs")))
                                    .filter(|file| self.base.join(file).exists())
                                    .unwrap_or_else(|| children.join(&child).join("mod.rs")),
                            };
                            self.read_file(&file, child_name, &children.join(child))?;
                        }
                        _ => {}
                    }
                    at += 2;
                }
                TokenTree::Ident(word) => {
                    let word = word.to_string();
                    if let (true, Some(TokenTree::Ident(item))) =
                        (ITEMS.contains(&word.as_str()), tokens.get(at))
                    {
                        self.module(name)?.items.insert(item.to_string());
                    }
                    if ROOTS.contains(&word.as_str()) && is_punct(tokens.get(at), ':') {
                        let mut path = vec![word];
                        while let (true, true, Some(TokenTree::Ident(segment))) = (
                            is_punct(tokens.get(at), ':'),
                            is_punct(tokens.get(at + 1), ':'),
                            tokens.get(at + 2),
                        ) {
                            path.push(segment.to_string());
                            at += 3;
                        }
                        self.module(name)?.paths.push(path);
                    }
                }
                TokenTree::Group(group) => self.scan(group.stream(), name, children)?,
                _ => {}
            }
            attributes = Attributes::default();
        }
        Ok(())
    }

    fn module(&mut self, name: &Names) -> Result<&mut Module> {
        self.by_name.get_mut(name).context("a module is known before what is in it")
    }

    /// The module that defines what `path` names in `module`; `None` for what other crates define.
    fn resolve(&self, module: &Names, path: &[String], reexports: usize) -> Option<Names> {
        let mut current = module.clone();
        for (index, segment) in path.iter().enumerate() {
            let known = &self.by_name[&current];
            let child = [current.as_slice(), std::slice::from_ref(segment)].concat();
            let through = |target: &Names| {
                let rest = [target.as_slice(), &path[index + 1..]].concat();
                (reexports < MAX_REEXPORTS).then(|| self.resolve(&current, &rest, reexports + 1))?
            };
            match segment.as_str() {
                "crate" => current.clear(),
                "self" => {}
                "super" => drop(current.pop()),
                _ if self.by_name.contains_key(&child) => current = child,
                _ if known.items.contains(segment) => return Some(current),
                _ => {
                    if let Some(target) = known.bindings.get(segment) {
                        return through(target);
                    }
                    let is_defined = |module: &Names| {
                        let module = &self.by_name[module];
                        module.items.contains(segment) || module.bindings.contains_key(segment)
                    };
                    let globs = known.globs.iter().filter(|_| reexports < MAX_REEXPORTS);
                    // The path of a glob import is not looked for in other glob imports.
                    let mut globs = globs.filter_map(|glob| self.resolve(&current, glob, MAX_REEXPORTS));
                    return match globs.find(is_defined) {
                        Some(found) => self.resolve(&found, &path[index..], reexports + 1),
                        None => (index > 0).then_some(current),
                    };
                }
            }
        }
        Some(current)
    }
}

/// How a path of this crate begins, where it is not a name in scope.
const ROOTS: [&str; 3] = ["crate", "self", "super"];
/// Keywords before the name of an item.
const ITEMS: [&str; 8] = ["fn", "struct", "enum", "trait", "const", "static", "type", "union"];

#[derive(Default)]
struct Attributes {
    is_test: bool,
    /// The file of the module, relative to the directory of the file that declares it.
    path: Option<String>,
}

impl Attributes {
    fn add(&mut self, attribute: TokenStream) {
        let text: String = attribute.to_string().split_whitespace().collect();
        self.is_test |= text.starts_with("cfg(test") || text.starts_with("cfg(all(test");
        let path = text.strip_prefix("path=\"").and_then(|rest| rest.strip_suffix('"'));
        self.path = path.map(str::to_owned).or(self.path.take());
    }
}

impl Module {
    /// Takes the tree of a `use` declaration, or a part of it below `prefix`.
    fn add_use(&mut self, tree: &[TokenTree], prefix: Names) {
        let branches = tree.split(|token| is_punct(Some(token), ','));
        for branch in branches.filter(|branch| !branch.is_empty()) {
            let mut path = prefix.clone();
            let mut alias = None;
            let mut tokens = branch.iter();
            while let Some(token) = tokens.next() {
                match token {
                    TokenTree::Ident(word) if word == "as" => {
                        alias = tokens.next().map(ToString::to_string);
                    }
                    TokenTree::Ident(word) => path.push(word.to_string()),
                    TokenTree::Group(group) => {
                        let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                        self.add_use(&inner, std::mem::take(&mut path));
                    }
                    TokenTree::Punct(punct) if punct.as_char() == '*' => {
                        self.globs.push(path.clone());
                        self.paths.push(std::mem::take(&mut path));
                    }
                    _ => {}
                }
            }
            // `self` in braces is what stands before them.
            if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                path.pop();
            }
            if let Some(last) = path.last() {
                self.bindings.insert(alias.unwrap_or_else(|| last.clone()), path.clone());
                self.paths.push(path);
            }
        }
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}
