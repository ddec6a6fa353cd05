-- The node of a cluster that a VM is on. None: the catalog is of one host, or the VM is on no node at
-- present. No reference: a copy of one table is of use without the other.
ALTER TABLE vm ADD COLUMN node TEXT;
CREATE INDEX vm_by_node ON vm (node);
