export * from './access';
export * from './bastion';
export * from './credential';
export * from './size';
export * from './target';
