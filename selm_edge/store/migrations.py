"""The schema, one numbered step at a time.

Step ``n`` brings a file from ``user_version`` n-1 to n. A released step is never edited: a change
is a new step at the end. Each runs inside the transaction that raises the version, so a file is
never between two versions.
"""

from __future__ import annotations

_CONVERSATIONS = """
create table setting(
  key text primary key,
  value text not null              -- JSON
) without rowid;

create table conversation(
  id integer primary key autoincrement,   -- never reused: feedback may outlive a conversation
  title text not null,
  named integer not null default 0,       -- 1 when the user chose the title
  system text,                            -- JSON string; null: the user's default
  sampling text,                          -- JSON object; null: the user's default
  leaf integer references message(id) on delete set null,  -- end of the branch on show
  created integer not null,               -- milliseconds since 1970
  updated integer not null
);
create index conversation_updated on conversation(updated desc);

create table message(
  id integer primary key autoincrement,
  conversation integer not null references conversation(id) on delete cascade,
  parent integer references message(id) deferrable initially deferred,  -- no cascade: a long
                                          -- chat would pass SQLite's depth limit of 1000
  role text not null check(role in ('user', 'assistant')),
  text text not null,
  context_from integer references message(id) on delete set null,  -- first turn still sent
  created integer not null,
  model text, model_sha256 text, template_id text,
  sampling text, seed integer,
  prompt_tokens integer, tokens integer, tokens_per_second real,
  finish_reason text
);
create index message_conversation on message(conversation);
create index message_parent on message(parent);
create index message_context on message(context_from);

create virtual table message_fts using fts5(
  text, content='message', content_rowid='id', tokenize='unicode61 remove_diacritics 2');
insert into message_fts(message_fts, rank) values('secure-delete', 1);
create trigger message_fts_insert after insert on message begin
  insert into message_fts(rowid, text) values (new.id, new.text);
end;
create trigger message_fts_delete after delete on message begin
  insert into message_fts(message_fts, rowid, text) values ('delete', old.id, old.text);
end;
create trigger message_fts_update after update of text on message begin
  insert into message_fts(message_fts, rowid, text) values ('delete', old.id, old.text);
  insert into message_fts(rowid, text) values (new.id, new.text);
end;

create virtual table title_fts using fts5(
  title, content='conversation', content_rowid='id', tokenize='unicode61 remove_diacritics 2');
insert into title_fts(title_fts, rank) values('secure-delete', 1);
create trigger title_fts_insert after insert on conversation begin
  insert into title_fts(rowid, title) values (new.id, new.title);
end;
create trigger title_fts_delete after delete on conversation begin
  insert into title_fts(title_fts, rowid, title) values ('delete', old.id, old.title);
end;
create trigger title_fts_update after update of title on conversation begin
  insert into title_fts(title_fts, rowid, title) values ('delete', old.id, old.title);
  insert into title_fts(rowid, title) values (new.id, new.title);
end;
"""

_FEEDBACK = """
create table feedback(
  id integer primary key autoincrement,
  uid text not null unique,        -- the same in every export, so that a bundle merges once
  kind text not null check(kind in ('up', 'down', 'correction', 'regeneration')),
  created integer not null,        -- milliseconds since 1970
  superseded_by integer references feedback(id) on delete set null,
  conversation integer,            -- no foreign key: the user may keep feedback past its chat
  message integer,
  messages text not null,          -- JSON: the turns as sent, system first, reply not included
  prompt text,                     -- those turns through the chat template
  reply text not null,
  correction text,
  sampling text, seed integer,
  model text, model_sha256 text, template_id text,
  tokens_per_second real,
  app_version text not null
);
create index feedback_message on feedback(message);
create index feedback_conversation on feedback(conversation);
create index feedback_superseded on feedback(superseded_by);
"""

_SYSTEM_OF_A_REPLY = """
alter table message add column system text;  -- as sent with this reply; '' none, null not known
"""

_MEMORY = """
create table space(
  id integer primary key autoincrement,
  name text not null unique collate nocase,
  created integer not null                -- milliseconds since 1970
);
insert into space values(1, 'personal', unixepoch() * 1000);

create table document(
  id integer primary key autoincrement,
  space integer not null references space(id),
  path text not null,
  kind text not null,                     -- 'text', 'markdown', 'pdf' ...
  sha256 text not null,                   -- of the file as it was read
  size integer not null,                  -- bytes
  modified integer not null,              -- milliseconds since 1970, as the file system says
  state text not null check(state in ('reading', 'complete')),
  resume text,                            -- JSON: where reading goes on after an interruption
  created integer not null,
  updated integer not null,
  unique(space, path)
);

create table memory(
  id integer primary key autoincrement,   -- never reused: a reply names what it recalled by id
  kind text not null check(kind in ('fact', 'correction', 'turn', 'passage')),
  space integer not null references space(id),
  text text not null,
  sha256 blob not null,                   -- of the normalised text
  source text not null,
  document integer references document(id),
  heading text,
  page integer, line integer, line_end integer,
  message integer references message(id) on delete set null,  -- the turn it came from
  created integer not null,
  updated integer not null,
  pinned integer not null default 0,
  status text not null default 'active' check(status in ('active', 'superseded', 'never')),
  superseded_by integer references memory(id) on delete set null,
  embedded integer not null default 0     -- 1: its vector, if it has one, is in the index
);
-- A passage may stand in two documents, and stays in one when the other is forgotten.
create unique index memory_once on memory(space, kind, sha256, ifnull(document, 0));
create index memory_document on memory(document) where document is not null;
create index memory_message on memory(message) where message is not null;
create index memory_superseded on memory(superseded_by) where superseded_by is not null;
create index memory_pinned on memory(space) where pinned = 1;
create index memory_recent on memory(space, updated);
create index memory_unembedded on memory(id) where embedded = 0 and status = 'active';

create virtual table memory_fts using fts5(
  text, heading, content='memory', content_rowid='id',
  tokenize='porter unicode61 remove_diacritics 2');
insert into memory_fts(memory_fts, rank) values('secure-delete', 1);
create trigger memory_fts_insert after insert on memory begin
  insert into memory_fts(rowid, text, heading) values (new.id, new.text, new.heading);
end;
create trigger memory_fts_delete after delete on memory begin
  insert into memory_fts(memory_fts, rowid, text, heading)
    values ('delete', old.id, old.text, old.heading);
end;
create trigger memory_fts_update after update of text, heading on memory begin
  insert into memory_fts(memory_fts, rowid, text, heading)
    values ('delete', old.id, old.text, old.heading);
  insert into memory_fts(rowid, text, heading) values (new.id, new.text, new.heading);
end;

-- What was recalled for a reply: JSON [{"memory": id, "number": as shown}]. Never the texts, so
-- that a forgotten memory has no copy here.
alter table message add column recalled text;
alter table conversation add column memory integer not null default 1;  -- 0: switched off
alter table conversation add column space integer references space(id) on delete set null;
"""

_HOW_A_REPLY_WAS_MADE = """
alter table message add column adapter text;   -- JSON: the adapters' names and scales; null none
alter table message add column experts text;   -- JSON {"tokens": {name: n}, "runs": [[name, n]]}
alter table message add column entropy real;   -- nats, mean over the reply's tokens
alter table message add column margin real;    -- likeliest less second, mean over its tokens

alter table feedback add column adapter text;
alter table feedback add column experts text;
alter table feedback add column entropy real;
alter table feedback add column margin real;
alter table feedback add column recalled text; -- JSON: ids of the memories sent with the question
-- 1: may leave this device in an export that the user makes; as the user wanted it at that time
alter table feedback add column consent integer not null default 1;
"""

# A check cannot be altered, and a copy of the table would leave the pages of the old one free in
# every file. This is SQLite's own way (https://sqlite.org/lang_altertable.html, section 7) for what
# changes no row; the added column has raised the schema's version, so that all connections read it.
_PREFERENCES = """
alter table feedback add column rejected text;  -- JSON: the reply not taken, and how it was made
pragma writable_schema = on;
update sqlite_master
  set sql = replace(sql, '''regeneration'')', '''regeneration'', ''preference'')')
  where type = 'table' and name = 'feedback';
pragma writable_schema = reset;
"""

MIGRATIONS: tuple[str, ...] = (
    _CONVERSATIONS, _FEEDBACK, _SYSTEM_OF_A_REPLY, _MEMORY, _HOW_A_REPLY_WAS_MADE, _PREFERENCES,
)  # fmt: skip
"""``MIGRATIONS[n - 1]`` makes version n."""
