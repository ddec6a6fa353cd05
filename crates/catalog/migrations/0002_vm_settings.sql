-- What the user set for a VM, JSON: how its twin is shut down.
ALTER TABLE vm ADD COLUMN settings TEXT;
